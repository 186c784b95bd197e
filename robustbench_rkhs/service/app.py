"""The web application: API, pages and the static site, with security headers on every answer."""

import traceback

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

import robustbench_rkhs
from robustbench_rkhs.nodes.node import did_you_mean
from robustbench_rkhs.runtime.sinks import for_line
from robustbench_rkhs.service.api import BODIES, api
from robustbench_rkhs.service.desk import Desk
from robustbench_rkhs.service.headers import SecurityHeaders
from robustbench_rkhs.service.views import error_page, views

ABOUT = "Submissions to a board of robustness verdicts. Reads are open; writes need a token: Authorization: Bearer TOKEN."


def create_app(desk: Desk) -> FastAPI:
    """The application. No answer names a path of the server, and an unexpected error says only that there was one."""
    app = FastAPI(
        title="rkhs-serve",
        version=robustbench_rkhs.__version__,
        description=ABOUT,
        openapi_url="/api/openapi.json",
        docs_url=None,  # its scripts come from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.include_router(api(desk))
    app.include_router(views(desk))
    app.add_middleware(SecurityHeaders)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        if error.status_code == 405 and request.method == "POST" and (kind := _unknown_kind(request.url.path)):
            return _answer(request, 404, f"unknown kind {kind!r}; {did_you_mean(kind, BODIES)}", {})
        return _answer(request, error.status_code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return _answer(request, 422, f"{place}: {first['msg']}", {})

    @app.exception_handler(SQLAlchemyError)
    async def away(request: Request, error: SQLAlchemyError) -> Response:
        traceback.print_exception(error)
        return _answer(request, 503, "the service's database is away: try again later", {"Retry-After": "10"})

    schema = app.openapi

    def with_token() -> dict[str, object]:
        """FastAPI's schema, with the form of tokens, and refusals as they are."""
        found = schema()
        parts = found.setdefault("components", {})
        parts["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        refused = {"application/json": {"schema": {"$ref": "#/components/schemas/Refused"}}}
        for operation in (operation for path in found["paths"].values() for operation in path.values()):
            for code, answer in operation["responses"].items():
                if code >= "400":
                    answer["content"] = refused
        return found

    app.openapi = with_token  # type: ignore[method-assign]
    return app


def _unknown_kind(path: str) -> str:
    """What somebody sends to /api/submissions/KIND, where there is no such kind; empty for any other path."""
    folder, _, kind = path.rpartition("/")
    return for_line(kind)[:40] if folder == "/api/submissions" and not kind.isdigit() else ""


def _answer(request: Request, code: int, detail: str, headers: dict[str, str]) -> Response:
    if request.url.path.startswith("/api/"):
        return JSONResponse({"detail": detail}, code, headers)
    return error_page(code, detail, headers)
