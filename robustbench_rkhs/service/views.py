"""The pages of the service: the form, the list, and a page for each submission; the rest is the static site."""

from functools import cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from jinja2 import ChoiceLoader, Environment, FileSystemLoader
from starlette.exceptions import HTTPException

from robustbench_rkhs.service import lifecycle
from robustbench_rkhs.service.access import COOKIE, address_of, check_origin
from robustbench_rkhs.service.api import Number
from robustbench_rkhs.service.desk import Desk
from robustbench_rkhs.service.settings import Settings
from robustbench_rkhs.service.state import State, state_of
from robustbench_rkhs.site.pages import HERE as SITE
from robustbench_rkhs.site.pages import environment

HERE = Path(__file__).parent
LINKS = '<a href="/submissions">Submissions</a>\n<a href="/submit">Submit</a>\n</nav>'
"""What the pages of the static site get, too, when the service sends them."""
TYPES = {".html", ".css", ".js", ".json", ".csv", ".svg", ".png", ".parquet", ".txt"}
"""Files of the site that are sent."""
LIST = 100
"""Submissions on the page of all."""


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
    def submissions() -> HTMLResponse:
        found, total = lifecycle.listed(desk.database, limit=LIST)
        waiting = desk.queue()
        states = [state_of(desk.settings, one, waiting, whole=False) for one in found]
        return page("submissions.html", title="Submissions", states=states, total=total, queue=waiting)

    @router.get("/submissions/{number}")
    def submission(number: Number) -> HTMLResponse:
        state = desk.state(number)
        return page("submission.html", title=f"Submission {number}", state=state, board=_board_page(desk.settings, state))

    @router.get("/submit")
    def form(request: Request) -> HTMLResponse:
        return page("submit.html", title="Submit", token=desk.access.known(request), settings=desk.settings)

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
        return _file(HERE / "static", name)

    @router.get("/")
    def front() -> Response:
        return _site_page(desk.settings, "index.html") if (desk.settings.site / "index.html").is_file() else _to_list()

    @router.get("/{path:path}")
    def site(path: str) -> Response:
        return _site_page(desk.settings, path)

    return router


def error_page(code: int, detail: str, headers: dict[str, str] | None = None) -> HTMLResponse:
    """A page that says what was refused, and why."""
    return page("error.html", code, headers, title="Not done" if code != 404 else "Not found", detail=detail)


def _to_list() -> RedirectResponse:
    return RedirectResponse("/submissions", 307)


def _site_page(settings: Settings, path: str) -> Response:
    """A file of the static site; its pages get links to the service. Raises HTTPException (404)."""
    try:
        found = _file(settings.site, path)
    except HTTPException:  # before the site is built for the first time, the service's pages have their style all the same
        folder, _, name = path.partition("/")
        if folder != "assets":
            raise
        found = _file(SITE / "static", name)
    if Path(path).suffix != ".html":
        return found
    try:
        text = Path(found.path).read_text(encoding="utf-8")
    except OSError:
        raise HTTPException(404, "there is no such page") from None
    return HTMLResponse(text.replace("</nav>", LINKS, 1))


def _file(folder: Path, path: str) -> FileResponse:
    """A file below the folder, no link and nothing hidden. Raises HTTPException (404)."""
    parts = path.split("/")
    plain = "\0" not in path and not any(part in ("", "..") or part.startswith(".") for part in parts)
    found = folder.joinpath(*parts) if plain and len(path) < 1000 else folder
    try:
        if Path(path).suffix in TYPES and found.is_file() and found.resolve().is_relative_to(folder.resolve()):
            return FileResponse(found)
    except OSError:
        pass  # a name that is too long
    raise HTTPException(404, "there is no such page")


def _board_page(settings: Settings, state: State) -> str:
    """Where the site shows an accepted checkpoint; empty where it doesn't."""
    if state.status != "accepted" or state.kind != "checkpoint" or state.hidden:
        return ""
    return f"/models/{state.name}.html" if (settings.site / "models" / f"{state.name}.html").is_file() else ""
