"""Listeners to events for tests."""

from robustbench_rkhs.runtime.events import EpochFinished, Event, Message, OnEvent, TrainingStep


def messages_into(lines: list[str]) -> OnEvent:
    """Adds the text of every message to these lines."""
    return lambda event: lines.append(event.text) if isinstance(event, Message) else None


def metrics_into(records: list[dict]) -> OnEvent:
    """Adds the metrics of every epoch to these records."""
    return lambda event: records.append(dict(event.metrics)) if isinstance(event, EpochFinished) else None


class Killed(BaseException):
    """Stands for a kill between two steps: nothing is saved after it."""


def killed_when(due) -> OnEvent:
    """Kills the work at the first event of which `due` is true."""

    def on_event(event: Event) -> None:
        if due(event):
            raise Killed

    return on_event


def killed_at(count: int) -> OnEvent:
    """Kills a training at its `count`-th step."""
    steps = iter(range(1, count))
    return killed_when(lambda event: isinstance(event, TrainingStep) and next(steps, None) is None)


def steps_of(events: list[Event]) -> list[TrainingStep]:
    """The steps among these events."""
    return [event for event in events if isinstance(event, TrainingStep)]
