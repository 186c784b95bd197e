"""Who may write: a token in the header, or in the cookie of a page of ours; with limits on uploads and on guesses."""

import time
from collections import OrderedDict

from starlette.exceptions import HTTPException
from starlette.requests import Request

from robustbench_rkhs.service.database import Database
from robustbench_rkhs.service.settings import Sent
from robustbench_rkhs.service.token import Token, seconds_to_wait, token_of

COOKIE = "rkhs_token"
GUESSES = 20
"""Unknown tokens in a minute from one address, after which it waits."""
MINUTE = 60.0
ADDRESSES = 10_000
"""Addresses that are remembered."""


class Access:
    """Checks tokens."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._guesses: OrderedDict[str, tuple[float, int]] = OrderedDict()
        """By address: since when, and how many."""

    def known(self, request: Request) -> Token | None:
        """The token of a page's visitor, for what the page shows; None without one."""
        secret = request.cookies.get(COOKIE, "")
        return token_of(self.database, secret) if secret else None

    def checked(self, secret: str, address: str) -> Token:
        """The token of this text. Raises HTTPException: 401 for one that is not in force, 429 after too many of them.

        A token in force is never refused for the guesses of others, who may share its address (a proxy).
        """
        if (token := token_of(self.database, secret)) is not None:
            return token
        since, count = self._guesses.get(address, (0.0, 0))
        fresh = time.monotonic() - since < MINUTE
        if fresh and count >= GUESSES:
            raise HTTPException(429, "too many unknown tokens from this address: wait a minute", {"Retry-After": "60"})
        self._guesses[address] = (since, count + 1) if fresh else (time.monotonic(), 1)
        self._guesses.move_to_end(address)
        while len(self._guesses) > ADDRESSES:
            self._guesses.popitem(last=False)
        raise HTTPException(401, "the token is unknown, or was revoked", {"WWW-Authenticate": "Bearer"})

    def upload(self, request: Request, kind: Sent) -> Token:
        """The token that may upload this now; the upload counts. Raises HTTPException: 401, 403 or 429."""
        token = self.checked(_secret(request), address_of(request))
        check_scope(token, kind)
        if (wait := seconds_to_wait(self.database, token)) > 0:
            line = f"the token may begin {token.hourly} uploads in an hour: the next in {wait:.0f} s"
            raise HTTPException(429, line, {"Retry-After": f"{wait:.0f}"})
        return token


def check_scope(token: Token, kind: Sent) -> None:
    """Raises HTTPException (403) for what the token may not send; what a bundle holds is known later."""
    scopes = token.scopes.split()
    if kind not in scopes and not (kind == "bundle" and scopes):
        raise HTTPException(403, f"the token may not send {kind}: it may send {token.scopes or 'nothing'}")


def address_of(request: Request) -> str:
    """The address of the other side."""
    return request.client.host if request.client else ""


def check_origin(request: Request) -> None:
    """Raises HTTPException (403) where a browser says that another site made it send this request."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "same-origin")
    ours = origin is None or origin.partition("://")[2] == request.headers.get("host", "")
    if not ours or site not in ("same-origin", "none"):
        raise HTTPException(403, "this request was made by a page of another site")


def _secret(request: Request) -> str:
    """The token as it was sent. Raises HTTPException: 401 without one, 403 for a cookie sent by another site's page."""
    given = request.headers.get("authorization")
    if given is not None:
        kind, _, secret = given.partition(" ")
        if kind.lower() != "bearer" or not secret.strip():
            raise HTTPException(401, "expected the header Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})
        return secret.strip()
    secret = request.cookies.get(COOKIE, "")
    if not secret:
        raise HTTPException(401, "expected a token, found none", {"WWW-Authenticate": "Bearer"})
    check_origin(request)
    return secret
