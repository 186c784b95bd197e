"""The list of all submissions, page by page: what is evaluated, then who waits, in their order, then the rest, the latest first."""

from collections.abc import Iterator

from sqlalchemy import case
from sqlmodel import col, func, select

from robustbench_rkhs.service.database import Database
from robustbench_rkhs.service.submission import Status, Submission


def listed(database: Database, offset: int, limit: int) -> tuple[list[Submission], int]:
    """A page of the submissions, and how many there are; a hidden one is there without its name, sender and log."""
    status, number = col(Submission.status), col(Submission.id)
    kind = case((status == Status.RUNNING, 0), (status == Status.QUEUED, 1), else_=2)
    place = case((status.in_((Status.RUNNING, Status.QUEUED)), col(Submission.queued_at)), else_=-1.0 * number)
    with database.reading() as session:
        total = session.exec(select(func.count()).select_from(Submission)).one()
        chosen = select(Submission).order_by(kind, place, number)
        return list(session.exec(chosen.offset(offset).limit(limit))), total


def page_links(offset: int, limit: int, total: int) -> list[tuple[str, str]]:
    """Addresses and words of the other pages that are reached from this one: first, previous, next and last."""
    last = (max(total, 1) - 1) // limit * limit
    wanted = {"First": 0, "Previous": max(min(offset - limit, last), 0), "Next": offset + limit, "Last": last}
    return list(_other(wanted, offset, last))


def _other(wanted: dict[str, int], offset: int, last: int) -> Iterator[tuple[str, str]]:
    for words, place in wanted.items():
        backwards = words in ("First", "Previous")
        if (place < offset) if backwards else (offset < place <= last):
            yield (f"/submissions?offset={place}" if place else "/submissions"), words
