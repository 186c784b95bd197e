"""The desk of the service: takes uploads, and says where each submission stands."""

import asyncio
import time
import traceback
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.files import Unwritable
from robustbench_rkhs.service import lifecycle
from robustbench_rkhs.service.access import Access, check_scope
from robustbench_rkhs.service.bundles import Bundle, incoming, keep
from robustbench_rkhs.service.database import Database
from robustbench_rkhs.service.guarding import TURN, Guard, guard
from robustbench_rkhs.service.lifecycle import NameTaken, Queue
from robustbench_rkhs.service.multipart import NAME, Form, receive
from robustbench_rkhs.service.public_text import public
from robustbench_rkhs.service.reserved_names import check_reserved
from robustbench_rkhs.service.settings import Sent, Settings
from robustbench_rkhs.service.state import State, add_to_log, state_of
from robustbench_rkhs.service.state_files import tell_states
from robustbench_rkhs.service.submission import Status, Submission
from robustbench_rkhs.service.token import Token
from robustbench_rkhs.service.wakeups import WakeUps
from robustbench_rkhs.submission.archive import ENDINGS, unpack_alone

FRESH = 0.5
"""Seconds for which the queue is not read again."""
LOOK = 1.0
"""Seconds between two looks at a submission that somebody watches."""


class Desk:
    """What the pages and the API do."""

    def __init__(self, settings: Settings, guard: Guard = guard) -> None:
        self.settings, self.guard = settings, guard
        self.database, self.wakeups = Database(settings), WakeUps(settings)
        self.access = Access(self.database)
        self.fresh = FRESH
        self.watching = 0
        """Streams of events that are open."""
        self._queue: tuple[float, Queue] | None = None

    def queue(self) -> Queue:
        """The queue, as it was half a second ago at most."""
        known = self._queue
        if known is None or time.monotonic() - known[0] > self.fresh:
            known = self._queue = time.monotonic(), lifecycle.queue(self.database)
        return known[1]

    def state(self, number: int) -> State:
        """Where a submission stands. Raises HTTPException (404)."""
        one = lifecycle.of_number(self.database, number)
        if one is None:
            raise HTTPException(404, f"there is no submission {number}")
        return state_of(self.settings, one, self.queue() if one.status == Status.QUEUED else None)

    async def states(self, number: int) -> AsyncIterator[State]:
        """The state now, and whenever it has changed; ends when nothing happens any more."""
        last = None
        while True:
            now = await run_in_threadpool(self.state, number)
            if now != last:
                yield now
                last = now
            if now.over:
                return
            await asyncio.sleep(LOOK)

    async def take(self, request: Request, kind: Sent) -> tuple[State, bool]:
        """Take an upload: its submission, and whether it is new.

        Raises HTTPException: 401, 403 or 429 before anything is read, 4xx for what is refused, 507 on a full disk. Then nothing
        is kept.
        """
        token = await run_in_threadpool(self.access.upload, request, kind)
        try:
            with incoming(self.settings) as folder:
                form = await receive(request, folder, self.settings.upload, self.settings.upload_seconds)
                return await run_in_threadpool(self._taken, _bundle(kind, folder, form), token)
        except (OSError, Unwritable):
            traceback.print_exc()
            raise HTTPException(507, "the server has no room, or cannot write: try again later") from None

    def _taken(self, bundle: Bundle, token: Token) -> tuple[State, bool]:
        if bundle.kind == "bundle":
            bundle = self._unpacked(bundle)
        digest = bundle.digest()
        known = lifecycle.of_digest(self.database, digest)
        if known is None:
            known, new = self._added(bundle, digest, token)
        else:
            new = False
        return self.state(known.number), new

    def _unpacked(self, bundle: Bundle) -> Bundle:
        """The folder that an archive holds. Raises HTTPException (422)."""
        folder = bundle.path.parent / ".bundle" / "bundle"
        folder.mkdir(parents=True)
        try:
            with TURN:
                unpack_alone(bundle.path, folder, self.settings.upload)
        except UserError as error:
            raise HTTPException(422, public(error, self.settings)) from None
        return replace(bundle, path=folder)

    def _added(self, bundle: Bundle, digest: str, token: Token) -> tuple[Submission, bool]:
        """Check the bundle, keep it, and put it into the queue. Raises HTTPException (403, 409 or 422)."""
        try:
            check_reserved(bundle)
            bundle = self.guard(bundle, self.settings)
            check_scope(token, bundle.kind)
            check_reserved(bundle)
            if bundle.kind == "checkpoint":
                lifecycle.own_name(self.database, bundle.name, token.id or 0)
        except NameTaken as error:
            raise HTTPException(409, str(error)) from None
        except UserError as error:
            raise HTTPException(422, public(error, self.settings)) from None
        size = bundle.size
        keep(self.settings, bundle, digest)
        one, new = lifecycle.add(
            self.database,
            Submission(
                digest=digest,
                kind=bundle.kind,
                name=bundle.name,
                size=size,
                token=token.id or 0,
                sender=token.name,
                status=Status.WAITING if self.settings.moderated else Status.QUEUED,
                queued_at=time.time(),
            ),
        )
        if new:
            self._queue = None
            signed = f", signed with the key {bundle.sender[:12]}" if bundle.sender else ""
            add_to_log(self.settings, one.number, f"received {size:,} bytes from {token.name}, digest {digest[:12]}{signed}")
            tell_states(self.settings, self.database, one.number)
            self.wakeups.wake_if_possible()
        return one, new


def _bundle(kind: Sent, folder: Path, form: Form) -> Bundle:
    """The files of a form as a bundle. Raises HTTPException (422)."""
    if kind == "adversarials":
        if len(form.files) != 1 or form.files[0].suffix != ".npz":
            raise HTTPException(422, "expected one file, FILE.npz")
        return Bundle(kind, form.files[0].name, form.files[0])
    if kind == "bundle":
        if len(form.files) != 1 or not form.files[0].name.endswith(ENDINGS):
            raise HTTPException(422, f"expected one file, a bundle's folder as {', '.join(ENDINGS)}")
        return Bundle(kind, form.files[0].name, form.files[0])
    name = form.fields.get("name", "")
    if not NAME.fullmatch(name):
        raise HTTPException(422, "name: expected the model's name, of letters, digits, _ . - (64 at most)")
    if not form.files:
        raise HTTPException(422, "expected the files of a checkpoint folder, found none")
    holder = folder / ".bundle"
    target = holder / name
    target.mkdir(parents=True)
    for file in form.files:
        file.rename(target / file.name)
    return Bundle(kind, name, target)
