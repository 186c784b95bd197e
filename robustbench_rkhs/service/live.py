"""What the events of an evaluation say of its progress, phase by phase, with the bounds that hold so far."""

from pydantic import BaseModel, ConfigDict

from robustbench_rkhs.runtime.events import Between, BoundsChanged, Event, Finished, Message, PhaseStarted, Progress
from robustbench_rkhs.service.public_text import public
from robustbench_rkhs.service.settings import Settings

MOST = 50
"""Steps that are kept."""


class Step(BaseModel):
    """A method at work in a phase, as far as it has come."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    phase: str
    method: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    """What is counted."""
    counted: str = ""
    """How many are done, and how far the work is where it has come further, in words; empty in states of before 2026-11-28."""
    left: float | None = None
    """Seconds to go, while that is known."""
    detail: str = ""


class Live(BaseModel):
    """Progress of one evaluation."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    steps: list[Step] = []
    """In the order in which they began; the last is under way."""
    images: int = 0
    """Images on which the bounds are."""
    ended: bool = False
    """Whether the evaluation of these steps has ended: a first look is followed by the whole."""
    bounds: tuple[Between, ...] = ()
    """Robust accuracy at each eps lies between these."""

    def note(self, event: Event) -> str:
        """Take an event into account; the line that it adds to the log, if any."""
        if isinstance(event, BoundsChanged):
            self.images, self.bounds = event.images, event.bounds
        elif isinstance(event, Message):
            return event.text
        elif isinstance(event, PhaseStarted):
            if self.ended:
                self.steps, self.bounds, self.images, self.ended = [], (), 0, False
            self._put(Step(phase=event.phase))
            return event.phase
        elif isinstance(event, Progress):
            fields = ("phase", "method", "done", "total", "unit", "counted", "left", "detail")
            self._put(Step(**{name: getattr(event, name) for name in fields}))
        elif isinstance(event, Finished):
            self.ended = True
        return ""

    def public(self, settings: Settings) -> "Live":
        """The same in public words."""
        words = ("phase", "method", "unit", "counted", "detail")
        steps = [one.model_copy(update={name: public(getattr(one, name), settings) for name in words}) for one in self.steps]
        return self.model_copy(update={"steps": steps})

    def _put(self, step: Step) -> None:
        """The step in its place: that of the same method, or of its phase without one, or a new one at the end."""
        for place in range(len(self.steps) - 1, -1, -1):
            known = self.steps[place]
            if known.phase == step.phase and known.method in (step.method, ""):
                self.steps[place] = step if step.total or not known.total else known
                return
        self.steps = [*self.steps, step][-MOST:]
