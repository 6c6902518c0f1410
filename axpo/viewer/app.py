"""The addresses of the viewer, and which page each of them is."""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from axpo.errors import AxpoError
from axpo.viewer import listing, logs, overview, reading, working
from axpo.viewer.guard import Guard
from axpo.viewer.site import HERE, NotThere, Site

Page = Callable[[Site, Request], Response]

GROUP = "/r/{run:int}/groups/{source}/{step:int}/{place:int}"
PAGES: dict[str, Page] = {
    "/": overview.overview,
    "/compare": reading.compare,
    "/r/{run:int}": overview.run_page,
    "/r/{run:int}/groups": listing.groups,
    GROUP: reading.group,
    f"{GROUP}/record.json": reading.record,
    "/r/{run:int}/held-out": reading.held_out,
    "/r/{run:int}/timeline": working.timeline,
    "/r/{run:int}/trace.json": working.step_trace,
    "/r/{run:int}/faults": working.faults,
    "/r/{run:int}/logs": logs.logs,
}


def make_app(site: Site, token: str, cookie: str) -> ASGIApp:
    """Return the viewer as an application that answers requests with the token only.

    Args:
        site: the runs and the templates.
        token: what a request must have.
        cookie: the name under which a browser keeps the token.
    """
    routes = [Route(path, _answer(site, page)) for path, page in PAGES.items()]
    routes.append(Route("/r/{run:int}/image/{name}", _answer(site, _image)))
    routes.append(Route("/favicon.ico", lambda request: Response(status_code=204)))
    routes.append(Route("/static/style.css", _answer(site, _style)))
    routes.append(Route("/static/script.js", _answer(site, _script)))
    handlers = {HTTPException: _not_found, Exception: _failed}
    return Guard(Starlette(routes=routes, exception_handlers=handlers), token, cookie)


def _answer(site: Site, page: Page) -> Callable[[Request], Response]:
    """Return a page as Starlette calls it: in a thread, because it reads files."""

    def answer(request: Request) -> Response:
        try:
            return page(site, request)
        except NotThere as error:
            return _message(site, 404, "Not there", str(error))
        except AxpoError as error:
            return _message(site, 500, "Not readable", str(error))

    return answer


def _message(site: Site, status: int, title: str, text: str) -> Response:
    template = site.templates.get_template("message.html.jinja")
    html = template.render(site.frame(None), title=title, text=text)
    return Response(html, status, media_type="text/html")


def _image(site: Site, request: Request) -> Response:
    """Return an image of a run, encoded by us."""
    thumbnail = request.query_params.get("thumbnail") == "1"
    name = request.path_params["name"]
    image = site.run_of(request).pictures.get(name, thumbnail=thumbnail)
    if image is None:
        return PlainTextResponse("There is no such image.", 404)
    # The name is made of the content: another image has another name.
    headers = {"Cache-Control": "private, max-age=86400, immutable"}
    return Response(image.content, media_type=f"image/{image.kind}", headers=headers)


def _style(site: Site, request: Request) -> Response:
    """Return the style of the report with that of the viewer."""
    report = site.templates.get_template("style.css.jinja").render()
    own = (HERE / "static" / "style.css").read_text(encoding="utf-8")
    return Response(f"{report}\n{own}", media_type="text/css")


def _script(site: Site, request: Request) -> Response:
    """Return the script of the report with that of the viewer."""
    report = site.templates.get_template("script.js.jinja").render()
    own = (HERE / "static" / "script.js").read_text(encoding="utf-8")
    return Response(f"{report}\n{own}", media_type="text/javascript")


async def _not_found(request: Request, error: Exception) -> Response:
    return PlainTextResponse("There is no such page.", 404)


async def _failed(request: Request, error: Exception) -> Response:
    # The page may not say what failed: it is ours to read, in the terminal.
    return PlainTextResponse("This page failed; the terminal of `axpo view` says how.", 500)
