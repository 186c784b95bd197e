"""The life of a submission in the database: added, claimed by a worker, ended, or taken from a worker that died.

The database alone says what is to be done: each change is one transaction, and a worker that lost its claim changes nothing.
"""

import json
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import literal, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, func, or_, select
from sqlmodel.sql.expression import SelectOfScalar

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.service.database import Database
from robustbench_rkhs.service.submission import OwnedName, Status, Submission
from robustbench_rkhs.submission.look_alikes import skeleton

MEASURED = 20
"""Latest evaluations whose mean duration estimates the next."""


@dataclass(frozen=True)
class Outcome:
    """How an evaluation ended: accepted, refused or held, with its reason and the tables that it added to the board."""

    status: Status
    reason: str = ""
    tables: tuple[str, ...] = ()


class NameTaken(UserError):
    """A model's name belongs to somebody else."""


def own_name(database: Database, name: str, token: int) -> None:
    """The name belongs to this token from now on. Raises NameTaken where it belongs to another one already."""
    key = skeleton(name)
    try:
        with database.writing() as session:
            if session.get(OwnedName, key) is None:
                session.add(OwnedName(skeleton=key, token=token))
    except IntegrityError:
        pass  # another request was quicker
    with database.reading() as session:
        owner = session.get(OwnedName, key)
    if owner is not None and owner.token != token:
        raise NameTaken(f"the name {name!r}, or one that looks like it, belongs to whoever sent it first: choose another")


def of_digest(database: Database, digest: str) -> Submission | None:
    """The submission of this digest."""
    with database.reading() as session:
        return session.exec(select(Submission).where(Submission.digest == digest)).first()


def accepted(database: Database, name: str) -> Submission | None:
    """The latest accepted checkpoint of this name that is not hidden."""
    wanted = (
        Submission.kind == "checkpoint",
        Submission.name == name,
        Submission.status == Status.ACCEPTED,
        Submission.hidden == "",
    )
    with database.reading() as session:
        return session.exec(select(Submission).where(*wanted).order_by(col(Submission.id).desc())).first()


def others_accepted(database: Database, one: Submission) -> list[Submission]:
    """The other submissions of its kind that are accepted and shown."""
    wanted = (Submission.kind == one.kind, Submission.id != one.id, Submission.status == Status.ACCEPTED, Submission.hidden == "")
    with database.reading() as session:
        return list(session.exec(select(Submission).where(*wanted)))


def add(database: Database, submission: Submission) -> tuple[Submission, bool]:
    """The stored submission, and whether it is new: what was sent before stays as it is."""
    if (known := of_digest(database, submission.digest)) is not None:
        return known, False
    try:
        with database.writing() as session:
            session.add(submission)
        return submission, True
    except IntegrityError:  # another request was quicker
        known = of_digest(database, submission.digest)
        if known is None:
            raise
        return known, False


def claim(database: Database, worker: str, lease: float) -> Submission | None:
    """The oldest queued submission, now this worker's; None if there is none."""
    while True:
        now = time.time()
        with database.writing() as session:
            found = session.exec(_queued().limit(1)).first()
            if found is None:
                return None
            taken = session.execute(
                update(Submission)
                .where(col(Submission.id) == found.id, col(Submission.status) == Status.QUEUED)
                .values(status=Status.RUNNING, worker=worker, lease=now + lease, started_at=now, attempt=found.attempt + 1)
            )
            won = taken.rowcount == 1  # type: ignore[attr-defined]
            if won:
                session.refresh(found)
        if won:
            return found


def refresh(database: Database, number: int, worker: str, lease: float) -> bool:
    """A sign of life; whether the submission still is this worker's."""
    return _change(database, number, worker, lease=time.time() + lease)


def end(database: Database, number: int, worker: str, outcome: Outcome) -> bool:
    """Store how it ended; False, and nothing is stored, if it is not this worker's any more.

    Tables of an earlier acceptance stay known, so that a person can take them off the board whatever came later.
    """
    known = of_number(database, number)
    tables = sorted({*json.loads(known.tables if known else "[]"), *outcome.tables})
    values = {"status": outcome.status, "reason": outcome.reason, "ended_at": time.time(), "tables": json.dumps(tables)}
    return _change(database, number, worker, **values)


def _change(database: Database, number: int, worker: str, **values: object) -> bool:
    mine = (col(Submission.id) == number, col(Submission.worker) == worker, col(Submission.status) == Status.RUNNING)
    with database.writing() as session:
        return bool(session.execute(update(Submission).where(*mine).values(**values)).rowcount == 1)  # type: ignore[attr-defined]


EVERY_WORKER = "*"


def give_back(database: Database, attempts: int, *, worker: str = "", why: str, counted: bool = True) -> list[Submission]:
    """Queue again what dead workers held, or let it wait for a person after `attempts`; what changed.

    Dead is `worker` (or EVERY_WORKER), and whoever gave no sign of life. `counted` False: the attempt does not count.
    """
    changed = []
    with database.writing() as session:
        dead = or_(col(Submission.worker) == worker, col(Submission.lease) < time.time(), literal(worker == EVERY_WORKER))
        for one in session.exec(select(Submission).where(Submission.status == Status.RUNNING, dead)):
            one.attempt -= 0 if counted else 1
            if one.attempt >= attempts:
                one.status, one.ended_at = Status.FAILED, time.time()
                one.reason = f"{why}, {one.attempt} times: it waits for a person"
            else:
                one.status = Status.QUEUED
                one.reason = f"{why}: attempt {one.attempt + 1} of {attempts} follows" if counted else ""
            one.worker, one.lease = "", 0.0
            session.add(one)
            changed.append(one)
    return changed


def of_number(database: Database, number: int) -> Submission | None:
    """The submission of this number."""
    with database.reading() as session:
        return session.get(Submission, number)


def change(database: Database, number: int, statuses: Sequence[Status] = (), **values: object) -> Submission | None:
    """The submission, changed by a person; None if its status is none of these (any, if none is given)."""
    with database.writing() as session:
        found = session.get(Submission, number)
        if found is None or (statuses and found.status not in statuses):
            return None
        for name, value in values.items():
            setattr(found, name, value)
        session.add(found)
    return found


def listed(
    database: Database, status: str = "", offset: int = 0, limit: int = 100, hidden: bool = False
) -> tuple[list[Submission], int]:
    """The latest submissions, and how many there are; those that a person hid only where `hidden`."""
    shown = [*([] if hidden else [col(Submission.hidden) == ""]), *([col(Submission.status) == status] if status else [])]
    with database.reading() as session:
        total = session.exec(select(func.count()).select_from(Submission).where(*shown)).one()
        chosen = select(Submission).where(*shown).order_by(col(Submission.id).desc())
        return list(session.exec(chosen.offset(offset).limit(limit))), total


_WAITS = col(Submission.status) == Status.QUEUED


@dataclass(frozen=True)
class Queue:
    """Who waits, in the order in which they are evaluated, and how long that may take."""

    waiting: Sequence[int]
    running: Sequence[int]
    seconds: float | None
    """Mean duration of the latest evaluations; None if there was none."""
    free_in: float | None
    """Seconds until the worker is free, as far as that can be told."""

    def position(self, number: int) -> int | None:
        """1 for the next; None if it does not wait."""
        return self.waiting.index(number) + 1 if number in self.waiting else None

    def seconds_to(self, number: int) -> float | None:
        """Seconds until its start, as far as that can be told."""
        place = self.position(number)
        return None if place is None else self._to_start(place)

    def all_seconds_to(self) -> list[float | None]:
        """The same of all who wait, in their order."""
        return [self._to_start(place) for place in range(1, len(self.waiting) + 1)]

    def _to_start(self, place: int) -> float | None:
        return None if self.seconds is None or self.free_in is None else self.free_in + (place - 1) * self.seconds


def queued(database: Database, numbers: Collection[int]) -> list[Submission]:
    """Those of these submissions that wait, in their order."""
    if not numbers:
        return []
    with database.reading() as session:
        return list(session.exec(_queued().where(col(Submission.id).in_(numbers))))


def queue(database: Database) -> Queue:
    """The queue as it stands."""
    with database.reading() as session:
        return _queue_in(session, time.time())


def _queue_in(session: Session, now: float) -> Queue:
    order = (col(Submission.queued_at), col(Submission.id))
    # numbers alone: a thousand rows as objects take twenty times as long
    waiting = [one for one in session.exec(select(Submission.id).where(_WAITS).order_by(*order)) if one is not None]
    busy = session.exec(select(Submission).where(Submission.status == Status.RUNNING)).all()
    times = select(Submission.started_at, Submission.ended_at).where(
        col(Submission.ended_at).is_not(None), col(Submission.started_at).is_not(None), Submission.status != Status.FAILED
    )
    took = [
        after - before
        for before, after in session.exec(times.order_by(col(Submission.ended_at).desc()).limit(MEASURED))
        if after is not None and before is not None and after >= before
    ]
    mean = sum(took) / len(took) if took else None
    left = [max(mean - (now - (one.started_at or now)), 0.0) for one in busy] if mean is not None else []
    return Queue(waiting, [one.number for one in busy], mean, min(left, default=0.0) if mean is not None else None)


def _queued() -> SelectOfScalar[Submission]:
    return select(Submission).where(_WAITS).order_by(col(Submission.queued_at), col(Submission.id))
