"""Who gets a page, and what a page may do."""

from __future__ import annotations

import pytest

from tests.axpo.viewer.conftest import COOKIE, TOKEN


def test_the_token_comes_by_address_once_and_by_cookie_then(stranger):
    assert stranger.get("/").status_code == 401
    assert stranger.get("/?token=wrong").status_code == 401
    answer = stranger.get(f"/r/0/groups?step=3&token={TOKEN}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/r/0/groups?step=3")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert stranger.get("/r/0/groups?step=3").status_code == 200
    stranger.cookies.clear()
    stranger.cookies.set(COOKIE, "wrong")
    assert stranger.get("/r/0/groups?step=3").status_code == 401


def test_a_redirect_stays_on_this_host(stranger):
    answer = stranger.get(f"http://127.0.0.1:8600//elsewhere.example/?token={TOKEN}")
    assert answer.headers["location"] == "/elsewhere.example/"


@pytest.mark.parametrize("path", ["/", "/static/script.js", "/r/0/image/x.png", "/nowhere"])
def test_nothing_is_there_without_the_token(stranger, path):
    answer = stranger.get(path)
    assert answer.status_code == 401
    assert "axpo view" in answer.text


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8600", 200),
        ("localhost:9999", 200),
        ("LOCALHOST", 200),
        ("[::1]:8600", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example:8600", 421),
        ("127.0.0.1:8600@evil.example", 421),
        ("localhost:x", 421),
        ("", 421),
    ],
)
def test_a_page_of_another_name_gets_nothing(client, host, status):
    assert client.get("/r/0", headers={"host": host}).status_code == status


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_changed(client, method):
    assert client.request(method, "/r/0").status_code == 405


@pytest.mark.parametrize("path", ["/", "/r/0/groups", "/nowhere", "/static/style.css", "/r/7"])
def test_every_answer_says_what_a_page_may_do(client, path):
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy
    assert "unsafe-inline" not in policy.replace("style-src-attr 'unsafe-inline'", "")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
