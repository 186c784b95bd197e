"""The training's progress bar; a line per epoch where there is no terminal."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from robustbench_rkhs.runtime.events import EpochFinished, Event, TrainingStep


class TrainingBar:
    """A context to which `train` reports."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(soft_wrap=True, quiet=quiet)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("training", total=None)

    def __enter__(self) -> "TrainingBar":
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.bar.stop()

    def show(self, event: Event) -> None:
        """A step moves the bar; an epoch prints its metrics (if there are many epochs, ten times in total)."""
        if isinstance(event, TrainingStep):
            done = event.epoch * event.steps + event.step
            text = f"epoch {event.epoch + 1}/{event.epochs} loss {event.loss:.4f}"
            self.bar.update(self.task, description=text, total=event.epochs * event.steps, completed=done)
        elif isinstance(event, EpochFinished):
            number = event.epoch + 1
            every = 1 if event.epochs <= 20 or event.metrics["seconds"] > 30 else -(-event.epochs // 10)
            if number % every == 0 or number == event.epochs:
                self.console.print(str(event), highlight=False)
        else:
            self.console.print(str(event), highlight=False)
