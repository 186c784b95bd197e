"""The files that say where submissions stand: SUBMISSIONS/ID/state.json, and SUBMISSIONS/queue.json: who waits."""

import json
import time
from pathlib import Path

from robustbench_rkhs.runtime.files import exclusive, write_text
from robustbench_rkhs.service import lifecycle
from robustbench_rkhs.service.database import Database
from robustbench_rkhs.service.lifecycle import Queue
from robustbench_rkhs.service.settings import Settings
from robustbench_rkhs.service.state import folder_of, state_of
from robustbench_rkhs.service.submission import Submission

AT_ONCE = 50
"""Files of submissions that wait, that are rewritten whenever their place in the queue changes."""
RATE = 100
"""Where there are more: so many a second, each of which takes about 1 ms; those that were written first are first."""
APART = 10.0
"""Seconds by which an estimated start in a file may differ from the estimate of now."""
Told = tuple[int, float | None]
"""Position and estimated start (seconds since 1970) of a submission that waits."""


def tell_states(settings: Settings, database: Database, *numbers: int) -> None:
    """Write the state of these submissions, as the database is now, of all that wait and have another place, and the queue.

    Each file is whole or absent, and under a lock: the last writer has read the latest state.
    """
    with exclusive(settings.states):
        waiting = lifecycle.queue(database)
        for number in numbers:
            if (one := lifecycle.of_number(database, number)) is not None:
                _write(settings, one, waiting)
        _tell_waiting(settings, database, waiting)
        found = {"waiting": list(waiting.waiting), "running": list(waiting.running), "seconds": waiting.seconds}
        write_text(settings.states / "queue.json", json.dumps(found) + "\n")


def _write(settings: Settings, one: Submission, waiting: Queue) -> None:
    text = state_of(settings, one, waiting).model_dump_json(indent=1)
    write_text(folder_of(settings, one.number) / "state.json", text + "\n")


def _tell_waiting(settings: Settings, database: Database, queue: Queue) -> None:
    """Rewrite the states that the queue made untrue when it moved."""
    path = settings.states / "told.json"  # what the files say: of a thousand, few are to be read
    told, age = _read(path)
    now = time.time()
    true: dict[int, Told] = {
        number: (place, None if to_go is None else round(now + to_go, 1))
        for place, (number, to_go) in enumerate(zip(queue.waiting, queue.all_seconds_to(), strict=True), 1)
    }
    kept = {number: what for number, what in told.items() if number in true}
    stale = [number for number in true if number not in kept]
    stale += [number for number, what in kept.items() if not _same(what, true[number])]
    chosen = set(stale if len(stale) <= AT_ONCE else stale[: int(RATE * age)])
    for one in lifecycle.queued(database, chosen):
        _write(settings, one, queue)
    if chosen:  # they go to the end, as written last
        written = {number: true[number] for number in true if number in chosen}
        others = {number: what for number, what in kept.items() if number not in chosen}
        write_text(path, json.dumps(others | written) + "\n")


def _same(told: Told, true: Told) -> bool:
    """Whether what a file says is still true."""
    if told[0] != true[0] or (told[1] is None) != (true[1] is None):
        return False
    return told[1] is None or true[1] is None or abs(told[1] - true[1]) <= APART


def _read(path: Path) -> tuple[dict[int, Told], float]:
    """What the files say, and how many seconds ago they were last made to; where that is unknown, nothing, and a second."""
    try:
        age = time.time() - path.stat().st_mtime
        return {int(number): (int(place), start) for number, (place, start) in json.loads(path.read_bytes()).items()}, age
    except (OSError, ValueError, AttributeError, TypeError):
        return {}, 1.0
