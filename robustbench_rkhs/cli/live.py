"""The live display of a terminal: what is under way in up to three quiet lines, which vanish when the work ends."""

import os
import sys
import time
from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from robustbench_rkhs.runtime.durations import clock_time, to_go
from robustbench_rkhs.runtime.events import Event, Progress, TrainingStep
from robustbench_rkhs.runtime.lines import View
from robustbench_rkhs.runtime.sinks import for_line

PATIENCE = 0.5
"""Seconds of work before anything is shown."""
BAR, WORDS = 30, 62
"""Columns of the bar at most, and those that the words beside it get first."""


_displays: list["LiveDisplay"] = []
"""Those that are shown now."""


def _leave_to_parent() -> None:
    """In a forked process: what is printed goes where it would go without a display, which stays its parent's."""
    if _displays:
        sys.stdout, sys.stderr = _displays[0].streams


os.register_at_fork(after_in_child=_leave_to_parent)


class LiveDisplay:
    """A listener that keeps the display; `tick` redraws it."""

    def __init__(self, console: Console, redirect_stdout: bool = True, now: Callable[[], float] = time.monotonic) -> None:
        self.console, self.now, self.view = console, now, View(now())
        self.streams = sys.stdout, sys.stderr
        self.last: tuple[object, ...] = ()
        self.live = Live(
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=redirect_stdout,
            get_renderable=self.render,
            vertical_overflow="crop",
        )

    def __call__(self, event: Event) -> None:
        self.view.note(event, self.now())

    def tick(self) -> None:
        """Redraw, once the work takes long enough to be shown."""
        self.view.settle(self.now())
        if not self.live.is_started:
            if self.now() - self.view.begun < PATIENCE or self.view.work is None:
                return
            self.live.start()
            _displays.append(self)
        shown = self.view.work, self.view.bounds, int(self.now() - self.view.begun)
        if shown != self.last:  # else there is nothing to draw
            self.last = shown
            self.live.refresh()

    def stop(self) -> None:
        """Take the display away."""
        if self in _displays:
            _displays.remove(self)
            self.live.stop()
            sys.stdout, sys.stderr = self.streams  # also where somebody redirected them when the display began

    def render(self) -> RenderableType:
        """The lines as they are now."""
        work, passed = self.view.work, clock_time(self.now() - self.view.begun)
        if work is None:
            return Text("")
        if isinstance(work, Progress):
            rows = [
                self._text(work.title, "bold"),
                self._bar(work.done + work.under_way, work.total, f"{work.done} of {work.total} {work.unit}", work.left),
            ]
        elif isinstance(work, TrainingStep):
            done, total = work.epoch * work.steps + work.step, work.epochs * work.steps
            rows = [self._text(work.title, "bold"), self._bar(done, total, work.speed, work.left)]
        else:
            rows = [self._text(f"{work}  {passed}", "bold")]
        if self.view.bounds is not None:
            rows.append(self._text(str(self.view.bounds)))
        return Group(*rows)

    def _text(self, line: str, style: str = "") -> Text:
        text = Text(for_line(line), style=style, no_wrap=True, overflow="ellipsis")
        text.truncate(self.console.width - 1, overflow="ellipsis")
        return text

    def _bar(self, done: float, total: int, words: str, left: float | None) -> RenderableType:
        grid = Table.grid(padding=(0, 2))
        line = f"{words}, {clock_time(self.now() - self.view.begun)} so far{to_go(left)}"
        line = for_line(line.removeprefix(", "))
        grid.add_row(
            ProgressBar(total=max(total, 1), completed=min(done, total), width=max(8, min(BAR, self.console.width - WORDS))),
            Text(line, no_wrap=True),
        )
        return grid
