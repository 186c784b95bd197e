"""Tokens: who may send what, and how much in an hour. Only their hashes are stored."""

import hashlib
import secrets
import time
from collections.abc import Sequence

from sqlmodel import Field, SQLModel, col, delete, func, select

from robustbench_rkhs.nodes.node import UserError, did_you_mean
from robustbench_rkhs.service.database import Database

PREFIX = "rkhs_"
"""Tokens begin with it, so that scanners of public repositories can know them."""
HOUR = 3600.0


class Token(SQLModel, table=True):
    """A token that was given out."""

    id: int | None = Field(default=None, primary_key=True)
    sha256: str = Field(default="", unique=True, index=True)
    """Hash of the token. It has 256 random bits, so that no salt or slow hash is needed."""
    name: str = Field(unique=True)
    """Public name of its holder, shown beside what was sent."""
    scopes: str = ""
    """What it may send, separated by blanks."""
    hourly: int = 0
    """Uploads in an hour, refused ones too."""
    made_at: float = 0.0
    revoked_at: float | None = None


class Upload(SQLModel, table=True):
    """An upload that a token began, for its rate limit. Rows are removed after an hour."""

    id: int | None = Field(default=None, primary_key=True)
    token: int = Field(index=True)
    at: float = Field(index=True)


def make_token(database: Database, name: str, scopes: Sequence[str], hourly: int) -> str:
    """A new token, which is stored nowhere; a holder whose token was revoked keeps the names of its models.

    Raises UserError for a name whose token is in force.
    """
    secret = PREFIX + secrets.token_urlsafe(32)
    with database.writing() as session:
        token = session.exec(select(Token).where(Token.name == name)).first() or Token(name=name, revoked_at=0.0)
        if token.revoked_at is None:
            raise UserError(f"there is a token named {name!r} already: choose another name, or revoke it first")
        token.sha256, token.scopes, token.hourly = _hash(secret), " ".join(scopes), hourly
        token.made_at, token.revoked_at = time.time(), None
        session.add(token)
    return secret


def tokens(database: Database) -> list[Token]:
    """All tokens, by name."""
    with database.reading() as session:
        return list(session.exec(select(Token).order_by(Token.name)))


def revoke_token(database: Database, name: str) -> None:
    """From now on the token opens nothing. Raises UserError for an unknown name."""
    with database.writing() as session:
        token = session.exec(select(Token).where(Token.name == name)).first()
        if token is None:
            known = session.exec(select(Token.name)).all()
            raise UserError(f"no token is named {name[:64]!r}; {did_you_mean(name, known)}" if known else "there is no token yet")
        token.revoked_at = token.revoked_at or time.time()
        session.add(token)


def token_of(database: Database, secret: str) -> Token | None:
    """The token, if it was given out and not revoked. Cost: one look-up by hash, whose time says nothing of other tokens."""
    with database.reading() as session:
        found = session.exec(select(Token).where(Token.sha256 == _hash(secret))).first()
    return None if found is None or found.revoked_at is not None else found


def seconds_to_wait(database: Database, token: Token, now: float | None = None) -> float:
    """Count an upload of this token: 0 if it may begin, else the seconds until the next may, and nothing is counted."""
    now = time.time() if now is None else now
    with database.writing() as session:
        session.exec(delete(Upload).where(col(Upload.at) < now - HOUR))
        mine = Upload.token == token.id
        if session.exec(select(func.count()).select_from(Upload).where(mine)).one() >= token.hourly:
            oldest = session.exec(select(func.min(Upload.at)).where(mine)).one()
            return max(oldest + HOUR - now, 1.0) if oldest is not None else HOUR
        session.add(Upload(token=token.id or 0, at=now))
    return 0.0


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()
