"""The worker: claims one submission after the other and evaluates it: `python -m robustbench_rkhs.service.worker`.

The settings come on standard input, as JSON, with the worker's name.
"""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from sqlalchemy.exc import OperationalError, SQLAlchemyError

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.parsing import parse
from robustbench_rkhs.nodes.reasons import cause
from robustbench_rkhs.runtime.children import end_with
from robustbench_rkhs.runtime.events import Event
from robustbench_rkhs.service import board_tables, lifecycle
from robustbench_rkhs.service.database import Database
from robustbench_rkhs.service.evaluating import Evaluate, EvaluationFailed, build_site_alone, evaluate
from robustbench_rkhs.service.lifecycle import Outcome
from robustbench_rkhs.service.live import Live
from robustbench_rkhs.service.public_text import public
from robustbench_rkhs.service.settings import Settings
from robustbench_rkhs.service.state import add_to_log, write_live
from robustbench_rkhs.service.state_files import tell_states
from robustbench_rkhs.service.submission import Status, Submission
from robustbench_rkhs.service.wakeups import WakeUps

T = TypeVar("T")
AGAIN = 0.2
"""Seconds before a database that was away is asked again."""
LINES = 1000
"""Lines of the log that an evaluation adds at most."""
EVERY = 1.0
"""Seconds between two states of a running evaluation."""


class Worker:
    """Evaluates what waits."""

    def __init__(self, settings: Settings, name: str, evaluate: Evaluate = evaluate) -> None:
        self.settings, self.name, self.evaluate = settings, name, evaluate
        self.database = Database(settings)

    def work(self) -> bool:
        """Evaluate the oldest submission that waits; False if there is none."""
        one = lifecycle.claim(self.database, self.name, self.settings.lease)
        if one is None:
            return False
        live, alive = Live(), threading.Event()
        beat = threading.Thread(target=self._beat, args=(one.number, alive), daemon=True)
        beat.start()
        try:
            write_live(self.settings, one.number, live)
            add_to_log(self.settings, one.number, f"attempt {one.attempt} of {self.settings.attempts} begins")
            self._told(one.number)
            self._ended(one, live, self.evaluate(self.settings, one, self._teller(one, live)))
        except Exception as error:  # EvaluationFailed, or a fault of ours, which must not leave the submission behind
            known = isinstance(error, EvaluationFailed)
            if not known:
                traceback.print_exc()
            self._failed(one, public(str(error) if known else cause(error), self.settings))
        finally:
            alive.set()
            beat.join()
        return True

    def _ended(self, one: Submission, live: Live, outcome: Outcome) -> None:
        """Store how it ended, unless the submission was taken from this worker meanwhile."""
        outcome = Outcome(outcome.status, public(outcome.reason, self.settings), outcome.tables)
        write_live(self.settings, one.number, live.public(self.settings))
        if outcome.status == Status.REFUSED:
            self._withdrawn(one)
        if self._patiently(lambda: lifecycle.end(self.database, one.number, self.name, outcome)):
            add_to_log(self.settings, one.number, f"{outcome.status}{': ' if outcome.reason else ''}{outcome.reason}")
            self._told(one.number)

    def _withdrawn(self, one: Submission) -> None:
        """Take what was accepted before off the board, before anyone reads that it is refused."""
        if one.tables == "[]" or not self._patiently(
            lambda: lifecycle.refresh(self.database, one.number, self.name, self.settings.lease)
        ):
            return
        try:
            if count := self._patiently(lambda: board_tables.withdraw(self.settings, self.database, one)):
                add_to_log(
                    self.settings, one.number, f"taken off the board: {count} table{'s' * (count > 1)} of an earlier acceptance"
                )
        except UserError as error:
            add_to_log(self.settings, one.number, f"the board could not be brought up to date: {error}")

    def _failed(self, one: Submission, why: str) -> None:
        """The evaluation decided nothing: it is tried again, or waits for a person."""
        why = f"the evaluation failed ({why})"
        attempts = self.settings.attempts
        changed = self._patiently(lambda: lifecycle.give_back(self.database, attempts, worker=self.name, why=why))
        told_of(self.settings, self.database, changed)

    def _teller(self, one: Submission, live: Live) -> Callable[[Event], object]:
        """A listener that keeps the log, and writes the progress about once a second."""
        due, lines = 0.0, 0

        def tell(event: Event) -> None:
            nonlocal due, lines
            if line := live.note(event):
                lines += 1
                if lines <= LINES:
                    add_to_log(self.settings, one.number, line if lines < LINES else "more lines are left out")
            if time.monotonic() >= due:
                due = time.monotonic() + EVERY
                write_live(self.settings, one.number, live.public(self.settings))
                self._told(one.number)

        return tell

    def _told(self, number: int) -> None:
        """Write the state file, unless the database is away: the next one says it, too."""
        with suppress(SQLAlchemyError):
            tell_states(self.settings, self.database, number)

    def _patiently(self, call: Callable[[], T]) -> T:
        """The call's answer; while the database is away it is asked again, until the lease is out. Raises SQLAlchemyError then."""
        end = time.monotonic() + self.settings.lease
        while True:
            try:
                return call()
            except OperationalError:
                if time.monotonic() > end:
                    raise
                time.sleep(AGAIN)

    def _beat(self, number: int, alive: threading.Event) -> None:
        """Signs of life until the evaluation ends, and its state: the queue's estimates grow also while it says nothing."""
        while not alive.wait(self.settings.lease / 4):
            with suppress(SQLAlchemyError):  # the database is away: the next sign of life may arrive
                lifecycle.refresh(self.database, number, self.name, self.settings.lease)
            self._told(number)


def told_of(settings: Settings, database: Database, changed: list[Submission]) -> None:
    """Say in the log and the state of each submission that it was taken from a worker."""
    for one in changed:
        add_to_log(settings, one.number, one.reason or "its worker was stopped: it is evaluated from the start")
    if changed:
        tell_states(settings, database, *(one.number for one in changed))


def run_worker(settings: Settings, name: str, evaluate: Evaluate = evaluate) -> None:
    """Work until a signal ends it."""
    worker = Worker(settings, name, evaluate)
    WakeUps(settings, worker.work).run()


def main(evaluate: Evaluate = evaluate, begin: Callable[[Settings], object] = lambda settings: None) -> None:
    """Run the worker of the settings on standard input; it ends with its parent. `begin` is called first."""
    given = json.loads(sys.stdin.buffer.read())
    end_with(int(given["parent"]))
    settings = parse(Settings, given["settings"], "settings")
    begin(settings)
    run_worker(settings, f"{given['name']}-{os.getpid()}", evaluate)


def _first_site(settings: Settings) -> None:
    """The site as the tables are now; a service works without one."""
    try:
        build_site_alone(settings)
    except UserError as error:
        sys.stderr.write(f"note: no site: {error}\n")


if __name__ == "__main__":
    main(begin=_first_site)
