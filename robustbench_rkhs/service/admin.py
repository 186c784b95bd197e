"""What a person decides: approve, re-run, hide and show submissions. Tokens: see `token.py`."""

import time
from pathlib import Path

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.service import board_tables, lifecycle
from robustbench_rkhs.service.database import Database
from robustbench_rkhs.service.public_text import public
from robustbench_rkhs.service.settings import Settings
from robustbench_rkhs.service.state import add_to_log, state_of
from robustbench_rkhs.service.state_files import tell_states
from robustbench_rkhs.service.submission import Status, Submission
from robustbench_rkhs.service.wakeups import WakeUps

PERSON = (Status.WAITING, Status.HELD, Status.FAILED)
"""What waits for a person."""
OVER = (*PERSON, Status.ACCEPTED, Status.REFUSED)


class Admin:
    """The admin's desk, beside a service that runs or not."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.database = settings, Database(settings)

    def approve(self, number: int) -> str:
        """Let what waits for a person go on; only what the gate held is published without its word. Raises UserError."""
        known = lifecycle.of_number(self.database, number)
        held = known is not None and known.status == Status.HELD
        return self._queued(number, PERSON, "approved by a person", approved=held)

    def rerun(self, number: int) -> str:
        """Evaluate a submission again, which is over. Raises UserError."""
        return self._queued(number, OVER, "to be evaluated again, as a person asked")

    def _queued(self, number: int, statuses: tuple[Status, ...], why: str, **values: object) -> str:
        known = lifecycle.of_number(self.database, number)
        if known is not None and known.hidden:
            raise UserError(f"submission {number} is hidden: show it first")
        values |= {"status": Status.QUEUED, "attempt": 0, "reason": "", "started_at": None, "ended_at": None}
        one = lifecycle.change(self.database, number, statuses, queued_at=time.time(), **values)
        if one is None:
            raise UserError(f"{self._found(number)}; expected one that is {', '.join(statuses)}")
        self._tell(one, why)
        WakeUps(self.settings).wake_if_possible()
        return f"submission {number} is {why}: it is queued"

    def hide(self, number: int, reason: str) -> str:
        """Show neither its names nor its log, and take its tables off the board. Raises UserError."""
        one = lifecycle.change(self.database, number, OVER, hidden=public(reason, self.settings) or "no reason given")
        if one is None:
            raise UserError(f"{self._found(number)}; expected one that is over")
        taken = self._moved(one, self.settings.out, board_tables.hidden(self.settings, number))
        self._tell(one, f"hidden by a person: {one.hidden}")
        return f"submission {number} is hidden: {one.hidden}; {_tables(taken)} taken off the board"

    def show(self, number: int) -> str:
        """Undo `hide`. Raises UserError."""
        one = lifecycle.change(self.database, number, hidden="")
        if one is None:
            raise UserError(self._found(number))
        back = self._moved(one, board_tables.hidden(self.settings, number), self.settings.out)
        self._tell(one, "shown again")
        return f"submission {number} is shown again; {_tables(back)} put back on the board"

    def waiting(self) -> list[str]:
        """A line on each submission that waits for a person."""
        found = [one for status in PERSON for one in lifecycle.listed(self.database, status)[0]]
        return [
            f"{one.id}  {one.kind} {one.name} of {one.sender}, {one.status}: {one.reason or 'not evaluated yet'}" for one in found
        ]

    def _found(self, number: int) -> str:
        one = lifecycle.of_number(self.database, number)
        return f"submission {number} is {state_of(self.settings, one).status}" if one else f"there is no submission {number}"

    def _tell(self, one: Submission, line: str) -> None:
        """Write it into its log, its state, and the queue."""
        add_to_log(self.settings, one.number, line)
        tell_states(self.settings, self.database, one.number)

    def _moved(self, one: Submission, source: Path, target: Path) -> int:
        """Move the submission's own tables, and draw the board without or with them; how many there were."""
        if found := board_tables.move(board_tables.tables_of(one), source, target):
            board_tables.draw(self.settings)
        return found


def _tables(count: int) -> str:
    return f"{count or 'no'} table{'s' if count != 1 else ''}"
