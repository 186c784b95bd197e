"""Progress of an evaluation as events: how far its methods have come, at what speed, and the bounds so far."""

from collections.abc import Iterator
from contextlib import contextmanager

from robustbench_rkhs.evaluation.bounds_so_far import BoundsSoFar
from robustbench_rkhs.evaluation.engines import Engine
from robustbench_rkhs.runtime.clock import Clock
from robustbench_rkhs.runtime.events import Between, BoundsChanged, PhaseStarted, emit
from robustbench_rkhs.runtime.heartbeat import heartbeat
from robustbench_rkhs.runtime.steps import Step
from robustbench_rkhs.verdicts import Part


class Follower:
    """Emits the events of one evaluation."""

    def __init__(self, engine: Engine, bounds: BoundsSoFar, clock: Clock) -> None:
        self.engine, self.bounds, self.clock = engine, bounds, clock
        self.phase = ""
        self.told: tuple[Between, ...] = ()

    def begin(self, phase: str) -> None:
        """Another phase begins, unless it is this one already."""
        if phase != self.phase:
            self.phase = phase
            emit(PhaseStarted(phase=phase))

    @contextmanager
    def step(self, phase: str, method: str, images: int) -> Iterator[Step]:
        """Context manager of a method on so many images: it tells of them at its start and about once a second."""
        self.begin(phase)
        step = Step(phase, method, images)
        with heartbeat(lambda: self.tell(step)):
            self.tell(step)
            yield step

    def tell(self, step: Step) -> None:
        """How far this step is, with what is done inside running jobs."""
        running = self.engine.under_way()
        detail = running[0][1].detail if len(running) == 1 else ""
        step.tell(sum(len(job.index) * meter.share for job, meter in running), detail, self.clock.left())

    def seen(self, part: Part) -> None:
        """Take the rows of a finished job into account; tell the bounds where they changed."""
        self.bounds.see(part.table)
        known = self.bounds.known()
        if known != self.told:
            self.told = known
            emit(BoundsChanged(images=self.bounds.images, bounds=known))
