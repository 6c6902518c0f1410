"""The list of a run's groups, with search and filters."""

from __future__ import annotations

from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from axpo.catalog.search import ORDERS, Found
from axpo.catalog.wanted import NAMES, PROPERTIES, Wanted, from_fields
from axpo.errors import AxpoError
from axpo.viewer.site import Site, number

PAGE = 40
"""Groups of a page."""
FIELDS = ("q", *NAMES, "is", "order")
"""What the address of a list says."""


def groups(site: Site, request: Request) -> Response:
    """Return a page of the groups that are wanted."""
    run = site.run_of(request)
    given = dict(request.query_params)
    order = order_of(given)
    page = number(given, "page", 1, 10**6) or 1
    fault = ""
    try:
        found = run.catalog.find(from_fields(given), order, first=(page - 1) * PAGE, most=PAGE)
    except AxpoError as error:
        # While somebody types, a filter is not complete yet.
        found, fault = Found(0, []), str(error)
    return site.page(
        request,
        "groups.html.jinja",
        run,
        found=found,
        fault=fault,
        names=run.catalog.names(),
        given={name: given.get(name, "") for name in FIELDS} | {"order": order},
        orders=tuple(ORDERS),
        properties=tuple(PROPERTIES),
        query=query_of(given),
        page=page,
        pages=-(-found.total // PAGE),
    )


def order_of(given: dict[str, str]) -> str:
    """Return how a request wants groups to be sorted."""
    order = given.get("order", "")
    return order if order in ORDERS else "newest"


def query_of(given: dict[str, str]) -> str:
    """Return the part of an address that says which groups are wanted; "" for all of them."""
    kept = {name: given[name] for name in FIELDS if given.get(name)}
    return urlencode(kept)


def wanted_of(given: dict[str, str]) -> Wanted:
    """Return which groups a request wants: all, if it cannot be read."""
    try:
        return from_fields(given)
    except AxpoError:
        return Wanted()
