"""The API: JSON, described by /api/openapi.json; writes need a token, reads are open to anyone."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel

from robustbench_rkhs.service import lifecycle
from robustbench_rkhs.service.desk import Desk
from robustbench_rkhs.service.settings import Sent
from robustbench_rkhs.service.state import State, state_of
from robustbench_rkhs.service.submission import Status

MOST = 2**31 - 1
Number = Annotated[int, Path(ge=1, le=MOST)]
"""A submission's number."""


class Refused(BaseModel):
    """Why a request was refused."""

    detail: str


class Listed(BaseModel):
    """A page of the list of submissions, the latest first; of hidden ones neither name, sender nor log."""

    total: int
    submissions: list[State]


class QueueNow(BaseModel):
    """The queue."""

    waiting: list[int]
    """Numbers, in the order in which they are evaluated."""
    running: list[int]
    seconds: float | None
    """Mean duration of the latest evaluations."""


_FILES = {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}
_NAME = {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", "description": "The model's name"}
BODIES: dict[Sent, dict[str, Any]] = {
    "checkpoint": {"name": _NAME, "files": _FILES | {"description": "model.safetensors, config.json, recipe.yaml ..."}},
    "adversarials": {"file": {"type": "string", "format": "binary", "description": "FILE.npz"}},
    "bundle": {"file": {"type": "string", "format": "binary", "description": "A bundle's folder as .zip, .tar or .tar.gz"}},
}
"""Fields of the forms, for OpenAPI: the forms are read as they arrive, not by FastAPI."""
WORDS = {
    400: "The form cannot be read",
    401: "No token, or none in force",
    403: "The token may not send this",
    404: "There is no such submission",
    408: "The upload took too long",
    409: "The name belongs to somebody else",
    413: "Too large",
    415: "No form",
    422: "Refused, with the reason",
    429: "Too many uploads in an hour",
    507: "The server has no room",
    503: "Too many readers at once",
}


def _answers(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": Refused, "description": WORDS[code]} for code in codes}


def _form(kind: Sent) -> dict[str, Any]:
    schema = {"type": "object", "properties": BODIES[kind], "required": sorted(BODIES[kind])}
    body = {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    return {"requestBody": body, "security": [{"token": []}]}


def api(desk: Desk) -> APIRouter:
    """The routes of the API."""
    router = APIRouter(prefix="/api", tags=["submissions"])
    uploads = _answers(400, 401, 403, 408, 409, 413, 415, 422, 429, 507) | {
        200: {"model": State, "description": "It was sent before"}
    }

    @router.get("/queue")
    def queue() -> QueueNow:
        """Who waits, in order."""
        now = desk.queue()
        return QueueNow(waiting=list(now.waiting), running=list(now.running), seconds=now.seconds)

    @router.get("/submissions")
    def submissions(
        status: Status | None = None,
        offset: Annotated[int, Query(ge=0, le=MOST)] = 0,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> Listed:
        """The latest submissions, without progress and log."""
        found, total = lifecycle.listed(desk.database, status or "", offset, limit, hidden=True)
        waiting = desk.queue()
        return Listed(total=total, submissions=[state_of(desk.settings, one, waiting, whole=False) for one in found])

    @router.get("/submissions/{number}", responses=_answers(404))
    def submission(number: Number) -> State:
        """Where a submission stands."""
        return desk.state(number)

    def watched(number: Number) -> int:
        """The submission to watch, checked before the stream begins."""
        desk.state(number)
        if desk.watching >= desk.settings.readers:
            raise HTTPException(503, "too many streams are open: read the page again from time to time", {"Retry-After": "10"})
        return number

    @router.get("/submissions/{number}/events", response_class=EventSourceResponse, responses=_answers(404, 503))
    async def events(number: Annotated[int, Depends(watched)]) -> AsyncIterator[ServerSentEvent]:
        """Server-sent events: the state now, and whenever it has changed, until nothing happens any more."""
        desk.watching += 1
        try:
            async for state in desk.states(number):
                yield ServerSentEvent(data=state.model_dump(mode="json"), event="state")
        finally:
            desk.watching -= 1

    @router.post("/submissions/checkpoint", status_code=201, responses=uploads, openapi_extra=_form("checkpoint"))
    async def checkpoint(request: Request, response: Response) -> State:
        """Send a checkpoint folder. Needs a token with the scope `checkpoint`."""
        return await _sent(request, response, "checkpoint")

    @router.post("/submissions/adversarials", status_code=201, responses=uploads, openapi_extra=_form("adversarials"))
    async def adversarials(request: Request, response: Response) -> State:
        """Send adversarial images of a model on the board. Needs a token with the scope `adversarials`."""
        return await _sent(request, response, "adversarials")

    @router.post("/submissions/bundle", status_code=201, responses=uploads, openapi_extra=_form("bundle"))
    async def bundle(request: Request, response: Response) -> State:
        """Send a signed bundle, as `rkhs-submit ... --bundle` writes it. Needs a token with the scope of what it holds."""
        return await _sent(request, response, "bundle")

    async def _sent(request: Request, response: Response, kind: Sent) -> State:
        state, new = await desk.take(request, kind)
        response.status_code = 201 if new else 200
        response.headers["Location"] = f"/submissions/{state.id}"
        return state

    return router
