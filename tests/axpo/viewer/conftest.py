from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from axpo.viewer.app import make_app
from axpo.viewer.site import Site
from axpo.viewer.watched import watch
from tests.axpo.viewer.made_runs import HOSTILE, write_run

TOKEN, COOKIE = "secret-token", "axpo-view"
ORIGIN = "http://127.0.0.1:8600"


class Still:
    """A follower of runs that do not grow."""

    def ask(self) -> None:
        pass


@pytest.fixture(scope="session")
def made_runs(tmp_path_factory):
    """Two runs of one recipe, the second of which says what no page may obey."""
    root = tmp_path_factory.mktemp("viewer")
    write_run(root, "a")
    write_run(root, "hostile", text=HOSTILE, ended=False)
    return root


def client_of(runs, tmp_path_factory):
    """Return a browser that has the token of a viewer of some runs."""
    watched = watch(runs, tmp_path_factory.mktemp("cache"))
    for run in watched:
        run.catalog.update()
    app = make_app(Site(watched, Still()), TOKEN, COOKIE)
    return TestClient(app, base_url=ORIGIN, follow_redirects=False, cookies={COOKIE: TOKEN})


@pytest.fixture(scope="session")
def client(made_runs, tmp_path_factory):
    return client_of([made_runs / "a", made_runs / "hostile"], tmp_path_factory)


@pytest.fixture
def stranger(client):
    """A browser that has not."""
    return TestClient(client.app, base_url=ORIGIN, follow_redirects=False)
