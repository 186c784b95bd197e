"""Every route of the API, fuzzed: no server error, no answer that the description does not know, no path of the server."""

from urllib.parse import quote

import pytest

for package in ("fastapi", "sqlmodel", "huey", "python_multipart", "httpx2", "schemathesis"):
    pytest.importorskip(package, reason=f"{package} is not installed (the extra `serve`)")

import schemathesis  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from test_service import Home  # noqa: E402

from robustbench_rkhs.service.headers import HEADERS  # noqa: E402
from robustbench_rkhs.service.lifecycle import Outcome  # noqa: E402
from robustbench_rkhs.service.submission import Status  # noqa: E402
from robustbench_rkhs.service.views import views  # noqa: E402

CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
FEW = 4
"""Examples per route."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    found = Home(tmp_path_factory.mktemp("fuzzed"), readers=1)
    found.send("one")
    found.work(lambda settings, one, tell: Outcome(Status.REFUSED, "<script>alert(1)</script>"))
    return found


def test_every_route_of_the_api_answers_as_described(home):
    described = schemathesis.openapi.from_asgi("/api/openapi.json", home.client.app)
    operations = [found.ok() for found in described.get_all_operations()]
    assert {operation.path for operation in operations} >= {"/api/queue", "/api/submissions/{number}/events"}
    for operation in operations:

        @settings(max_examples=FEW, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(operation.as_strategy())
        def ask(case):
            for headers in ({}, {"Authorization": f"Bearer {home.bob}"}):
                answer = case.call(headers=headers)
                case.validate_response(answer, checks=CHECKS)
                assert answer.status_code < 500 and str(home.settings.folder) not in answer.text
                assert all(answer.headers[name.lower()] == [value] for name, value in HEADERS.items())

        ask()


def test_every_route_of_the_pages_answers_whatever_is_asked(home):
    paths = [route.path for route in views(home.desk).routes]
    assert {"/submissions", "/submissions/{number}", "/submit", "/login", "/{path:path}"} <= set(paths)

    @settings(max_examples=30, deadline=None)
    @given(
        st.sampled_from(paths),
        st.text(max_size=30),
        st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD"]),
        st.binary(max_size=50),
    )
    def ask(path, word, method, body):
        path = path.replace("{number}", word).replace("{name}", word).replace("{path:path}", word)
        if path.endswith("/events"):
            return
        answer = home.client.request(method, "http://testserver" + quote(path, safe="/.%"), content=body)
        assert answer.status_code < 500, (method, path)
        assert str(home.settings.folder) not in answer.text

    ask()
