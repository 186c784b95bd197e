"""A submission as the database keeps it, and the statuses it goes through."""

from enum import StrEnum

from sqlalchemy import BigInteger
from sqlmodel import Field, SQLModel


class Status(StrEnum):
    """Where a submission stands. Of the last five, only a person moves one on."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    """For a person, before it is evaluated (a moderated service)."""
    HELD = "held"
    """For a person: it was evaluated, and publishing it would do what no submission may do by itself."""
    FAILED = "failed"
    """For a person: its worker died as often as `attempts` allows, or its evaluation ran out of its budget."""
    ACCEPTED = "accepted"
    REFUSED = "refused"


STATUS_WORDS = {
    Status.QUEUED: "queued",
    Status.RUNNING: "being evaluated",
    Status.WAITING: "waits for approval by a person",
    Status.HELD: "evaluated, and held for a person",
    Status.FAILED: "failed, and waits for a person",
    Status.ACCEPTED: "accepted",
    Status.REFUSED: "refused",
}


class Submission(SQLModel, table=True):
    """One submission. Times are seconds since 1970 (UTC)."""

    id: int | None = Field(default=None, primary_key=True)
    digest: str = Field(unique=True, index=True)
    """sha256 of what was sent: a second upload of the same is the same submission."""
    kind: str
    name: str = Field(index=True)
    """Of a checkpoint: the model's name. Of adversarial images: the file's, or in a bundle the model's."""
    size: int = Field(sa_type=BigInteger)
    """Bytes: more than an integer of PostgreSQL holds."""
    token: int = Field(index=True)
    """The token that sent it."""
    sender: str
    """The token's public name."""
    status: str = Field(index=True)
    queued_at: float = Field(index=True)
    started_at: float | None = None
    ended_at: float | None = None
    attempt: int = 0
    """Attempts begun."""
    worker: str = ""
    """Who evaluates it."""
    lease: float = 0.0
    """Until when that worker counts as alive without another sign."""
    approved: bool = False
    """A person allowed what the gate holds."""
    hidden: str = ""
    """Why a person hid it; empty if it is shown."""
    reason: str = ""
    """Why it was refused, is held, or failed; in public words."""
    tables: str = "[]"
    """Tables of the board that are its own: paths below OUT, as JSON."""

    @property
    def number(self) -> int:
        """Its id, once it is stored."""
        assert self.id is not None
        return self.id


class OwnedName(SQLModel, table=True):
    """A model's name belongs to whoever sent it first, with all names that look like it."""

    skeleton: str = Field(primary_key=True)
    """The name without case, accents and look-alike letters."""
    token: int
