"""Who may ask the viewer, and what its pages may do.

A run holds what a policy wrote and what a tool found on the web. So a page loads nothing from
elsewhere and runs no script but our own. Pages of other sites and other users of the machine get
nothing:

- The server listens on the loopback address only.
- A request must name a loopback host: a page of another site cannot point its own name here.
- A request must have the token: in the address that `axpo view` prints, afterwards in a cookie.
- Only GET and HEAD: nothing can be changed.
"""

from __future__ import annotations

import hmac
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import URL, Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = frozenset(("localhost", "127.0.0.1", "[::1]"))
"""Any port: a tunnel has another one at its other end."""

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        # Colours and sizes in attributes: numbers that we write, never a rule.
        "style-src-attr 'unsafe-inline'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


class Guard:
    """Let requests with the token through, and put the headers on every answer."""

    def __init__(self, app: ASGIApp, token: str, cookie: str) -> None:
        """Make the guard.

        Args:
            app: what it guards.
            token: what a request must have.
            cookie: its name. Cookies do not know ports: two viewers need two names.
        """
        self._app, self._token, self._cookie = app, token, cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            return
        refused = self._refused(Request(scope))
        answer = self._app if refused is None else refused
        await answer(scope, receive, _with_headers(send))

    def _refused(self, request: Request) -> Response | None:
        """Return why a request gets no page; None if it gets one."""
        if _host_name(request.headers) not in HOSTS:
            return PlainTextResponse("This host name is not served here.", 421)
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("Nothing can be changed here.", 405, {"Allow": "GET, HEAD"})
        if self._is_token(request.query_params.get("token", "")):
            return self._welcome(request.url)
        if not self._is_token(request.cookies.get(self._cookie, "")):
            reason = "Open the address that `axpo view` printed: the token in it is missing here."
            return PlainTextResponse(reason, 401)
        return None

    def _welcome(self, url: URL) -> Response:
        """Give the token as a cookie, and take it out of the address."""
        query = urlencode([pair for pair in parse_qsl(url.query) if pair[0] != "token"])
        # A path alone, and one slash: "//host" would lead elsewhere.
        path = "/" + url.path.lstrip("/")
        response = RedirectResponse(f"{path}?{query}" if query else path, 303)
        response.set_cookie(self._cookie, self._token, httponly=True, samesite="lax")
        return response

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(errors="replace"), self._token.encode())


def _host_name(headers: Headers) -> str:
    """Return the host that a request names, without the port."""
    host = headers.get("host", "").lower()
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            # What a run holds is not kept on disk, except what says otherwise: images.
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return sending
