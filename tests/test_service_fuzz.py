"""Every route, fuzzed by schemathesis: no server error, no path of the server, every security header, no write without a token."""

from urllib.parse import quote

import pytest

for package in ("fastapi", "sqlmodel", "huey", "python_multipart", "httpx2", "schemathesis"):
    pytest.importorskip(package, reason=f"{package} is not installed (the extra `serve`)")

import schemathesis  # noqa: E402
from fastapi.openapi.utils import get_openapi  # noqa: E402
from fastapi.routing import iter_route_contexts  # noqa: E402
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from schemathesis import GenerationMode  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from test_service import Home  # noqa: E402

from robustbench_rkhs.service.admin import Admin  # noqa: E402
from robustbench_rkhs.service.headers import HEADERS  # noqa: E402
from robustbench_rkhs.service.lifecycle import Outcome  # noqa: E402
from robustbench_rkhs.service.submission import Status  # noqa: E402
from robustbench_rkhs.service.token import make_token  # noqa: E402
from robustbench_rkhs.service.views import views  # noqa: E402

CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
FEW = 4
"""Examples per method of a route, of each kind, each asked four times."""
KNOWN = {
    "number": [1],
    "name": ["follow.js", "../app.py"],
    "path": ["index.html", "boards/a.html", "drawn.txt", "../service.db", "assets/site.css", ".hidden", "a\0.html"],
}
"""Parameters of paths that are there, or must not be sent."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A service with a submission that was refused; a person approves new ones, so that no stream of events stays open."""
    found = Home(tmp_path_factory.mktemp("fuzzed"), readers=1, moderated=True)
    found.send("one")
    Admin(found.settings).approve(1)
    assert found.work(lambda settings, one, tell: Outcome(Status.REFUSED, "<script>alert(1)</script>"))
    (found.settings.site / "boards").mkdir(parents=True)
    for name in ("index.html", "boards/a.html", ".hidden"):
        (found.settings.site / name).write_text("<nav></nav>")
    found.carol = make_token(found.desk.database, "carol", ["checkpoint", "adversarials"], 10_000)
    (found.settings.site / "drawn.txt").symlink_to(found.settings.folder / "service.db")
    return found


def routes(app):
    """Method and path of every route of the application, without its converters."""
    return {(method, found.path.replace(":path}", "}")) for found in iter_route_contexts(app.routes) for method in found.methods}


def whole_description(home):
    """The description of the API, with every other route of the application: pages, forms, files of the site, itself."""
    found, pages = home.client.app.openapi(), views(home.desk).routes
    for route in pages:
        route.include_in_schema = True
    others = get_openapi(title="pages", version="1", routes=pages)
    paths = {**found["paths"], **others["paths"]}
    paths["/api/openapi.json"] = {method: {"responses": {"200": {"description": "It"}}} for method in ("get", "head")}
    for kind in ("checkpoint", "adversarials", "bundle"):  # the forms of the pages are those of the API
        paths[f"/submit/{kind}"]["post"]["requestBody"] = paths[f"/api/submissions/{kind}"]["post"]["requestBody"]
    schemas = {**found["components"]["schemas"], **others["components"]["schemas"]}
    return {**found, "paths": paths, "components": {**found["components"], "schemas": schemas}}


def drawn(operation):
    """Strategies: what the description allows, what it forbids where it forbids anything, and the parameters that are KNOWN."""
    yield operation.as_strategy(GenerationMode.POSITIVE)
    if operation.body or operation.query or "{number}" in operation.path:
        yield operation.as_strategy(GenerationMode.NEGATIVE)
    for name in (name for name in KNOWN if f"{{{name}}}" in operation.path):
        yield st.sampled_from(KNOWN[name]).flatmap(lambda one, name=name: operation.as_strategy(path_parameters={name: one}))


def written(home):
    """What uploads leave."""
    return home.client.get("/api/submissions").json()["total"], home.kept(), sorted(home.settings.incoming.iterdir())


def check(home, operation, case):
    """Whoever asks, the answer is as it must be; without a token in force nothing is written. The answers' codes."""
    uploads = operation.method == "post" and "/subm" in operation.path
    of_the_api = operation.path.startswith("/api/submissions") or operation.path == "/api/queue"
    ours, wrong = {"Authorization": f"Bearer {home.carol}"}, {"Cookie": "rkhs_token=rkhs_wrong"}
    codes = set()
    for headers in ({}, wrong, {"Cookie": f"rkhs_token={home.carol}"}, ours):
        before = written(home)
        answer = case.call(headers=headers, allow_redirects=False)
        codes.add(answer.status_code)
        if of_the_api:
            case.validate_response(answer, checks=CHECKS)
        assert answer.status_code < 500
        assert str(home.settings.folder).encode() not in answer.content
        assert all(answer.headers[name.lower()] == [value] for name, value in HEADERS.items())
        if headers in ({}, wrong):
            assert written(home) == before
            assert answer.status_code in (401, 429) or not uploads
    return codes


def fuzz(home, operation):
    """All codes that the operation answered."""
    codes = set()
    for cases in drawn(operation):

        @settings(max_examples=FEW, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(cases)
        def ask(case):
            codes.update(check(home, operation, case))

        ask()
    return codes


@pytest.mark.filterwarnings("ignore:Duplicate Operation ID")  # HEAD is answered by the function that answers GET
def test_every_route_answers_whatever_is_asked(home):
    described = schemathesis.openapi.from_dict(whole_description(home))
    described.app = home.client.app
    operations = [found.ok() for found in described.get_all_operations()]
    assert {(one.method.upper(), one.path) for one in operations} == routes(home.client.app)
    for operation in operations:
        codes = fuzz(home, operation)
        assert 200 in codes or operation.method == "post", operation.path  # it was reached
    assert home.client.get("/api/submissions").json()["total"] > 1  # what came with a token was taken


def test_other_methods_and_paths_are_refused_in_order(home):
    paths = [path for _, path in sorted(routes(home.client.app))]

    @settings(max_examples=30, deadline=None)
    @given(
        st.sampled_from(paths),
        st.text(max_size=30),
        st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]),
        st.binary(max_size=50),
    )
    def ask(path, word, method, body):
        path = path.replace("{number}", word).replace("{name}", word).replace("{path}", word)
        answer = home.client.request(method, "http://testserver" + quote(path, safe="/.%"), content=body)
        assert answer.status_code < 500, (method, path)
        assert str(home.settings.folder) not in answer.text
        assert all(answer.headers[name] == value for name, value in HEADERS.items())

    ask()
