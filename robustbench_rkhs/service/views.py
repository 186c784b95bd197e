"""The pages of the service: the form, the list, and a page for each submission; the rest is the static site."""

from functools import cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from fastapi.routing import APIRoute
from jinja2 import ChoiceLoader, Environment, FileSystemLoader

from robustbench_rkhs.service import lifecycle
from robustbench_rkhs.service.access import COOKIE, address_of, check_origin
from robustbench_rkhs.service.api import MOST, Number
from robustbench_rkhs.service.asked_words import asked_words
from robustbench_rkhs.service.desk import Desk
from robustbench_rkhs.service.listing import listed, page_links
from robustbench_rkhs.service.site_files import LINKS, file_below, pages_of, site_file
from robustbench_rkhs.service.state import state_of
from robustbench_rkhs.site.pages import HERE as SITE
from robustbench_rkhs.site.pages import environment

HERE = Path(__file__).parent
LIST = 100
"""Submissions on a page of the list."""


@cache
def _templates() -> Environment:
    folders = [FileSystemLoader(HERE / "templates"), FileSystemLoader(SITE / "templates")]
    return environment().overlay(loader=ChoiceLoader(folders))


def page(template: str, code: int = 200, headers: dict[str, str] | None = None, **values: Any) -> HTMLResponse:
    """A template, filled in."""
    text = _templates().get_template(template).render(root="/", **values)
    return HTMLResponse(text.replace("</nav>", LINKS, 1), code, headers)


def views(desk: Desk) -> APIRouter:
    """The routes of the pages."""
    router = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)

    @router.get("/submissions")
    def submissions(offset: Annotated[int, Query(ge=0, le=MOST)] = 0) -> HTMLResponse:
        found, total = listed(desk.database, offset, LIST)
        waiting = desk.queue()
        states = [state_of(desk.settings, one, waiting, whole=False) for one in found]
        values: dict[str, Any] = {"states": states, "total": total, "queue": waiting}
        values |= {"links": page_links(offset, LIST, total), "first": offset + 1}
        return page("submissions.html", title="Submissions", **values)

    @router.get("/submissions/{number}")
    def submission(number: Number) -> HTMLResponse:
        state, one = desk.state(number), lifecycle.of_number(desk.database, number)
        pages = pages_of(desk.settings, one) if one else []
        return page("submission.html", title=f"Submission {number}", state=state, pages=pages)

    @router.get("/submit")
    def form(request: Request) -> HTMLResponse:
        return page(
            "submit.html",
            title="Submit",
            token=desk.access.known(request),
            settings=desk.settings,
            asked=asked_words(desk.settings),
        )

    @router.post("/submit/checkpoint")
    async def checkpoint(request: Request) -> RedirectResponse:
        state, _ = await desk.take(request, "checkpoint")
        return RedirectResponse(f"/submissions/{state.id}", 303)

    @router.post("/submit/adversarials")
    async def adversarials(request: Request) -> RedirectResponse:
        state, _ = await desk.take(request, "adversarials")
        return RedirectResponse(f"/submissions/{state.id}", 303)

    @router.post("/submit/bundle")
    async def bundle(request: Request) -> RedirectResponse:
        state, _ = await desk.take(request, "bundle")
        return RedirectResponse(f"/submissions/{state.id}", 303)

    @router.post("/login")
    def login(request: Request, token: Annotated[str, Form(max_length=200)]) -> RedirectResponse:
        check_origin(request)
        desk.access.checked(token.strip(), address_of(request))
        answer = RedirectResponse("/submit", 303)
        secure = request.url.scheme == "https"
        answer.set_cookie(COOKIE, token.strip(), httponly=True, samesite="strict", secure=secure, max_age=30 * 86400)
        return answer

    @router.post("/logout")
    def logout(request: Request) -> RedirectResponse:
        check_origin(request)
        answer = RedirectResponse("/submit", 303)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    @router.get("/service/{name}")
    def static(name: str) -> FileResponse:
        return file_below(HERE / "static", name)

    @router.get("/")
    def front() -> Response:
        return site_file(desk.settings, "index.html") if (desk.settings.site / "index.html").is_file() else _to_list()

    @router.get("/{path:path}")
    def site(path: str) -> Response:
        return site_file(desk.settings, path)

    for route in router.routes:
        if isinstance(route, APIRoute) and route.methods and "GET" in route.methods:
            route.methods.add("HEAD")  # the same headers: the server leaves the content out
    return router


def error_page(code: int, detail: str, headers: dict[str, str] | None = None) -> HTMLResponse:
    """A page that says what was refused, and why."""
    return page("error.html", code, headers, title="Not done" if code != 404 else "Not found", detail=detail, form=code != 404)


def _to_list() -> RedirectResponse:
    return RedirectResponse("/submissions", 307)
