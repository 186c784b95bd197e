"""Wake-up messages: huey carries them, in SQLite or Redis. A message says that a submission waits, not which.

What waits is in the database. A message that is lost with a killed worker is replaced by `wake_all`, one too many finds nothing.
"""

import hashlib
import json
import traceback
from collections.abc import Callable
from typing import Any

from huey import RedisHuey, SqliteHuey
from huey.api import Huey
from huey.registry import Message
from huey.serializer import Serializer

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import cause
from robustbench_rkhs.runtime.extras import require
from robustbench_rkhs.service.settings import Settings

NAME = "robustbench_rkhs"
SCHEMES = ("redis://", "rediss://", "unix://")


class _AsJson(Serializer):  # type: ignore[misc]
    """Messages as JSON, since huey's own form is pickle, which runs what it reads."""

    def _serialize(self, data: Message) -> bytes:
        return json.dumps(list(data)).encode()

    def _deserialize(self, data: bytes) -> Message:
        return Message(*json.loads(data))


class WakeUps:
    """The queue of messages. `work` is what a worker does with each."""

    def __init__(self, settings: Settings, work: Callable[[], object] = lambda: None) -> None:
        """Raises UserError for a URL that is not Redis's, and without the package for it."""
        self.huey = _huey(settings)
        self.task = self.huey.task(name="evaluate_next")(lambda: work() and None)

    def wake(self, count: int = 1) -> None:
        """So many submissions wait."""
        for _ in range(count):
            self.task()

    def wake_if_possible(self) -> None:
        """One submission waits. Where this fails, the traceback is on stderr, and the supervisor's next look wakes the worker."""
        try:
            self.wake()
        except Exception:  # of SQLite or Redis
            traceback.print_exc()

    def check(self) -> None:
        """Raises UserError where the queue cannot be reached."""
        try:
            self.huey.pending_count()
        except Exception as error:  # of SQLite or Redis
            raise UserError(f"the service's queue cannot be reached: {cause(error)}") from None

    def wake_all(self, waiting: int) -> None:
        """At least as many messages as submissions that wait."""
        self.wake(max(waiting - int(self.huey.pending_count()), 0))

    def run(self) -> None:
        """Work on messages until a signal ends it. Cost while idle: two look-ups per second."""
        options: dict[str, Any] = {"workers": 1, "periodic": False, "initial_delay": 0.05, "backoff": 1.2, "max_delay": 0.5}
        self.huey.create_consumer(**options).run()


def _huey(settings: Settings) -> Huey:
    if not settings.queue:
        filename = str(settings.folder / "queue.db")
        return SqliteHuey(NAME, filename=filename, results=False, serializer=_AsJson(), fsync=True)
    scheme = settings.queue.partition(":")[0]
    if not settings.queue.startswith(SCHEMES):
        raise UserError(f"the queue's URL begins with {scheme[:20]!r}: expected redis://...")
    require("redis", "redis", f"a queue at {scheme}://")
    # services that share a Redis do not take each other's messages
    name = f"{NAME}-{hashlib.sha256(f'{settings.folder} {settings.database}'.encode()).hexdigest()[:12]}"
    try:
        return RedisHuey(name, url=settings.queue, results=False, serializer=_AsJson())
    except ValueError as error:  # of what follows the scheme
        raise UserError(f"the queue's URL cannot be read: {error}") from None
