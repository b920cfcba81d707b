"""Nothing of Flower is reached without its password or from another origin, nor changed beyond a cancel."""

from __future__ import annotations

import base64

import pytest
from flower.urls import handlers
from tornado.web import RequestHandler

from lorayard.server.flower_gate import FlowerGate

JOB = "/api/task/revoke/0198-ab"
HOSTS = ("127.0.0.1", "localhost", "[::1]", "flower.example")


def refused(
    method: str, path: str, *, may_cancel: bool = False, password: str = "pä:ss", **headers: str
) -> int | None:
    gate = FlowerGate("lorayard", "pä:ss", hosts=HOSTS, may_cancel=may_cancel)
    known = base64.b64encode(f"lorayard:{password}".encode()).decode()
    sent = {"Host": "127.0.0.1:5555", "Authorization": f"Basic {known}"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    refusal = gate.refusal(method, path, sent)
    return None if refusal is None else refusal.status


@pytest.mark.parametrize("path", ["/", "/api/tasks", "/metrics", "/static/js/flower.js", "/login", JOB])
def test_everything_but_the_health_check_asks_for_the_password(path: str) -> None:
    assert refused("GET", path) is None
    assert refused("GET", path, password="pass") == 401
    for said in ("", "Basic", "Basic ä", "Basic !!", "Bearer bG9yYXlhcmQ6cMOkOnNz"):
        assert refused("GET", path, Authorization=said) == 401
    assert refused("GET", "/healthcheck", Authorization="") is None


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9", "[::1]:5555", "FLOWER.example:443"])
def test_it_is_served_under_the_names_that_were_given(host: str) -> None:
    assert refused("GET", "/", Host=host) is None


@pytest.mark.parametrize(
    "host", ["", "evil.example:5555", "127.0.0.1.evil.example", "localhost,evil", "[::1", "a@b"]
)
def test_a_name_that_was_made_to_point_here_reaches_nothing(host: str) -> None:
    assert refused("GET", "/", Host=host) == refused("GET", "/healthcheck", Host=host) == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:3000"},  # another program of this machine
        {"Origin": "http://localhost:5555"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site", "Origin": "http://127.0.0.1:5555"},
    ],
)
def test_a_page_of_another_origin_reaches_nothing(headers: dict[str, str]) -> None:
    for method, path in (
        ("GET", "/"),
        ("GET", "/static/js/flower.js"),
        ("POST", JOB),
        ("GET", "/healthcheck"),
    ):
        assert refused(method, path, may_cancel=True, **headers) == 403


def test_its_own_pages_and_programs_are_served() -> None:
    own = {"Origin": "http://127.0.0.1:5555", "Sec_Fetch_Site": "same-origin"}

    assert refused("POST", "/tasks/datatable", may_cancel=False, **own) is None
    assert refused("POST", JOB, may_cancel=True, **own) is None
    assert refused("GET", "/", Sec_Fetch_Site="none") is None
    assert (
        refused("POST", JOB, may_cancel=True, Host="flower.example", Origin="https://flower.example") is None
    )


def test_a_job_is_cancelled_only_where_that_is_turned_on() -> None:
    assert refused("POST", JOB) == 403
    assert refused("POST", JOB, may_cancel=True) is None
    assert refused("GET", JOB, may_cancel=True) is None  # which Flower itself does not offer
    assert refused("POST", f"{JOB}/../../worker/shutdown/a", may_cancel=True) == 403


def test_of_what_flower_offers_to_change_nothing_else_is_let_through() -> None:
    offered = set()
    for route in handlers:
        pattern, handler = (
            (route.regex.pattern, route.handler_class) if hasattr(route, "regex") else route[:2]
        )
        path = str(pattern).rstrip("$").replace("(.+)", "a-1").replace("(.*)", "a-1").replace("/?", "")
        changing = {"post", "put", "patch", "delete"}
        offered |= {
            (name.upper(), path)
            for name in changing
            if getattr(handler, name) is not getattr(RequestHandler, name)
        }

    through = {(method, path) for method, path in offered if refused(method, path, may_cancel=True) is None}

    assert ("POST", "/api/worker/shutdown/a-1") in offered
    assert through == {("POST", "/tasks/datatable"), ("POST", "/api/task/revoke/a-1")}
