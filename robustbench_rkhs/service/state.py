"""The public state of a submission: a file that anyone may read, the same as its page and the API show."""

import os
from collections import deque
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from robustbench_rkhs.runtime.files import write_text
from robustbench_rkhs.service.lifecycle import Queue
from robustbench_rkhs.service.live import Live
from robustbench_rkhs.service.public_text import public
from robustbench_rkhs.service.settings import Settings
from robustbench_rkhs.service.submission import STATUS_WORDS, Status, Submission

TAIL = 40
"""Lines of the log that are shown."""
READ = 64 << 10
"""Bytes of the log's end that are read."""


class State(BaseModel):
    """What anyone may know of a submission. Times are ISO 8601 in UTC."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    id: int
    kind: str
    name: str
    sender: str
    digest: str
    status: Status
    words: str
    """The status in words."""
    over: bool
    """Whether nothing happens any more unless a person acts."""
    queued_at: str
    position: int | None = None
    """1 for the next to be evaluated; null if it does not wait."""
    estimated_start: str | None = None
    """From the mean duration of the latest evaluations; null while there was none."""
    started_at: str | None = None
    ended_at: str | None = None
    attempt: int = 0
    attempts: int = 3
    """Attempts after which it waits for a person."""
    reason: str = ""
    """Why it was refused, is held, failed, or is tried again."""
    hidden: str = ""
    """Why a person hid it: then neither its names nor its log are shown."""
    live: Live = Live()
    """Progress by phase while it is evaluated, and the bounds that were found."""
    log: tuple[str, ...] = ()
    """The last lines of its log."""


def state_of(settings: Settings, one: Submission, waiting: Queue | None = None, whole: bool = True) -> State:
    """The state of a submission; with its position if the queue is given, without progress and log unless `whole`."""
    place, to_go = (waiting.position(one.number), waiting.seconds_to(one.number)) if waiting else (None, None)
    status = Status(one.status)
    found = State(
        id=one.number,
        kind=one.kind,
        name=one.name,
        sender=one.sender,
        digest=one.digest,
        status=status,
        words=STATUS_WORDS[status],
        over=status not in (Status.QUEUED, Status.RUNNING),
        queued_at=iso(one.queued_at),
        position=place,
        estimated_start=iso(datetime.now(UTC).timestamp() + to_go) if to_go is not None else None,
        started_at=iso(one.started_at) if one.started_at else None,
        ended_at=iso(one.ended_at) if one.ended_at else None,
        attempt=one.attempt,
        attempts=settings.attempts,
        reason=one.reason,
        live=_live(settings, one) if whole else Live(),
        log=tuple(log_tail(settings, one.number)) if whole else (),
    )
    if one.hidden:
        blank = {"name": "hidden", "sender": "", "reason": "", "live": Live(), "log": (), "words": "hidden by a person"}
        return found.model_copy(update={**blank, "hidden": one.hidden})
    return found


def write_live(settings: Settings, number: int, live: Live) -> None:
    """Write the progress of an evaluation, which `state_of` reads."""
    write_text(folder_of(settings, number) / "progress.json", live.model_dump_json() + "\n")


def add_to_log(settings: Settings, number: int, text: object) -> None:
    """Add a line to the log of a submission, in public words."""
    path = folder_of(settings, number) / "log.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    line = f"{iso(datetime.now(UTC).timestamp())} {public(text, settings)}\n"
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, line.encode(errors="backslashreplace"))
    finally:
        os.close(handle)


def log_tail(settings: Settings, number: int, lines: int = TAIL) -> list[str]:
    """The last lines of a log."""
    try:
        with (folder_of(settings, number) / "log.txt").open("rb") as file:
            file.seek(max(file.seek(0, 2) - READ, 0))
            return list(deque(file.read().decode(errors="replace").splitlines(), lines))
    except OSError:
        return []


def folder_of(settings: Settings, number: int) -> Path:
    """The folder of a submission's public files."""
    return settings.states / str(number)


def _live(settings: Settings, one: Submission) -> Live:
    """Its progress; of one that is not being evaluated only the bounds, as its last steps were never told to be done."""
    try:
        found = Live.model_validate_json((folder_of(settings, one.number) / "progress.json").read_bytes())
    except (OSError, ValidationError):
        return Live()
    if one.status == Status.QUEUED:
        return Live()  # an attempt before this one
    return found if one.status == Status.RUNNING else found.model_copy(update={"steps": []})


def iso(seconds: float) -> str:
    """A time as text, to the second."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
