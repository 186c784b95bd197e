"""The training's progress bar; a line per epoch where there is no terminal."""

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class TrainingBar:
    """A context to which `train` reports."""

    def __init__(self, epochs: int, quiet: bool = False) -> None:
        self.epochs, self.console = epochs, Console(soft_wrap=True, quiet=quiet)
        self.started = time.monotonic()
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("training", total=None)

    def __enter__(self) -> "TrainingBar":
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()

    def report(self, record: dict[str, Any]) -> None:
        """A step moves the bar; an epoch prints its metrics (if there are many epochs, ten times in total)."""
        if "step" in record:
            done = record["epoch"] * record["steps"] + record["step"]
            text = f"epoch {record['epoch'] + 1}/{self.epochs} loss {record['loss']:.4f}"
            self.bar.update(self.task, description=text, total=self.epochs * record["steps"], completed=done)
            return
        number = record["epoch"] + 1
        every = 1 if self.epochs <= 20 or record["seconds"] > 30 else -(-self.epochs // 10)
        if number % every == 0 or number == self.epochs:
            shown = {"loss": f"{record['loss']:.4f}", "lr": f"{record['lr']:.4g}"}
            shown |= {k.replace("validation_", "validation "): f"{v:.3f}" for k, v in record.items() if "validation" in k}
            shown |= {"tau in force": f"{record['tau_0']:.4f}"} if "tau_0" in record else {}
            text = ", ".join(f"{key} {value}" for key, value in shown.items())
            self.console.print(f"epoch {number}/{self.epochs}: {text}", highlight=False)
