"""The scheduler: submits jobs to an engine as results come back."""

from collections.abc import Callable, Generator, Iterable, Iterator
from typing import NamedTuple

from robustbench_rkhs.evaluation.engines import Engine, Outcome
from robustbench_rkhs.evaluation.interrupted import Interrupted
from robustbench_rkhs.evaluation.jobs import Job
from robustbench_rkhs.evaluation.store import Store
from robustbench_rkhs.runtime.children import WorkerKilled
from robustbench_rkhs.runtime.clock import OutOfTime
from robustbench_rkhs.runtime.events import Message, emit
from robustbench_rkhs.verdicts import Part

Chain = Generator[Job, Part, None]
"""Successive jobs: each is made once the result of the previous one is known, without the images that it decided."""


Instead = Callable[[Job, str], Part | None]
"""What stands in the table for a job that no worker survived, and why; None if the evaluation cannot go on without it."""


class _UnderWay(NamedTuple):
    chain: Chain
    whole: Job
    """What the chain asked for; the engine got what of it was not stored."""
    again: bool
    """Computed although it is stored."""


class Scheduler:
    """Runs chains of jobs in parallel, as many as the engine takes. Stored results are read, the rest is computed and stored."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        seen: Callable[[Part], None] = lambda part: None,
        instead: Instead = lambda job, why: None,
        note: Callable[[Outcome], None] = lambda outcome: None,
    ) -> None:
        """`seen` is called with every result, computed or read; `instead` with what no worker survived; `note` with every outcome
        of the engine."""
        self.engine, self.store, self.seen, self.instead, self.note = engine, store, seen, instead, note
        self.computing: set[Chain] = set()
        """Chains of which a job was computed, not only read; without those that ended."""
        self.given_up: list[str] = []
        """Jobs that no worker survived, each in a line."""
        self._under_way: dict[str, _UnderWay] = {}
        self._stopping = False

    def run(self, chains: Iterable[Chain]) -> Iterator[Chain]:
        """Run all chains, in order of priority; yields each when it has ended.

        The order in which results come back affects only the order of work. Raises the exception of a job; OutOfTime once all
        running jobs have come back.
        """
        waiting, self._stopping = iter(chains), False
        while True:
            ended = None
            try:
                if not self._stopping and len(self._under_way) < self.engine.width and (chain := next(waiting, None)) is not None:
                    ended = self._advance(chain)
                elif self._under_way:
                    ended = self._receive()
                else:
                    break
            except OutOfTime:
                self._stopping = True
            if ended is not None:
                yield ended
                self.computing.discard(ended)
        if self._stopping:
            raise OutOfTime

    def all(self, chains: Iterable[Chain]) -> None:
        """As `run`, to the end."""
        for _ in self.run(chains):
            pass

    def one(self, job: Job) -> Part:
        """The result of a single job."""
        results: list[Part] = []

        def alone() -> Chain:
            results.append((yield job))

        self.all([alone()])
        return results[0]

    def _receive(self) -> Chain | None:
        """Wait for a result, and take its chain on; the chain where it has ended."""
        outcome = self.engine.result()
        self.note(outcome)
        job, found = outcome.job, outcome.found
        chain, whole, again = self._under_way.pop(job.name)
        if found is None:  # another process has stored it
            part = self._stored(chain, whole)
            return None if part is None else self._advance(chain, part)
        if isinstance(found, WorkerKilled) and (instead := self.instead(job, str(found))) is not None:
            self.given_up.append(str(found))
            found = instead
        if isinstance(found, Interrupted):  # what it had found is noted, then the interruption goes on
            self._stopping = True
            self.store.put(job, found.part)
            if (part := self._stored(chain, whole)) is not None:
                self._advance(chain, part)
        if isinstance(found, BaseException):
            raise found
        for line in found.noticed.said:
            emit(Message(text=line))
        if again:
            gathered = self.store.gathered(found)
            self.seen(gathered)
            return self._advance(chain, gathered)
        self.store.put(job, found)
        part = self._stored(chain, whole)
        return None if part is None else self._advance(chain, part)

    def _advance(self, chain: Chain, part: Part | None = None) -> Chain | None:
        """Take a chain to its next job that must be computed; the chain where it has ended."""
        while True:
            try:
                job = next(chain) if part is None else chain.send(part)
            except StopIteration:
                return chain
            if self._stopping:  # what came back was noted; nothing more is begun
                chain.close()
                return None
            if (todo := self.store.open(job)) is not None:
                self._submit(todo, _UnderWay(chain, job, False))
                return None
            if (part := self._stored(chain, job)) is None:
                return None

    def _stored(self, chain: Chain, job: Job) -> Part | None:
        """A stored result. None where it is computed again: what breaks a certificate met later is replayed, for which images are
        needed."""
        part = self.store.take(job)
        claims = job.certified if job.phase == "attack" else ()
        broken = sum(radius <= claim for radius, claim in zip(part.table["radius"], claims, strict=bool(claims)))
        if len(part.noticed.breaches) >= broken:
            self.seen(part)
            return part
        self._submit(job, _UnderWay(chain, job, True))
        return None

    def _submit(self, job: Job, under_way: _UnderWay) -> None:
        self._under_way[job.name] = under_way
        self.computing.add(under_way.chain)
        self.engine.submit(job)
