"""Who stands where in a section of the leaderboard: ranks, with ties by the paired test, and the entries that are apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from robustbench_rkhs.reports.checks_ran import ChecksRan
from robustbench_rkhs.reports.completion import completing, kept_folder
from robustbench_rkhs.reports.entries import Entry
from robustbench_rkhs.reports.paired_tests import PairedTests
from robustbench_rkhs.verdicts import holm, ranked_together

ALPHA = 0.05


@dataclass(frozen=True)
class Standing:
    """The entries that are ranked with each other, and the sound ones that are not, at one eps."""

    ranked: list[Entry]
    """By robust, then certified accuracy."""
    ranks: list[int]
    """1 for the first. A model that does not differ significantly from the best of a rank shares that rank."""
    beside: list[tuple[Entry, str]]
    """On other images or by other attacks, or without what the ranked ones went through, with what is missing."""
    adjusted: Float[np.ndarray, "models models"]
    """Holm-adjusted p-values of the paired test, over all pairs."""
    shared: Int[np.ndarray, "models models"]
    """Images that both of a pair were evaluated on."""

    @classmethod
    def of(cls, entries: Sequence[Entry], eps: float, record: Path | None = None) -> "Standing":
        """The standing of the entries of a section. `record`: of their paired tests, as `PairedTests.of` takes it.

        Cost: two products of (models x images) matrices.
        """
        sound = [entry for entry in entries if entry.status == "ranked"]
        apart = {id(one): why for one, why in ranked_together([entry.brief for entry in sound], eps).apart}
        alike = [entry for entry in sound if id(entry.brief) not in apart]
        apart |= _ran_less(alike)
        ranked = [entry for entry in sound if id(entry.brief) not in apart]
        beside = [(entry, apart[id(entry.brief)]) for entry in sound if id(entry.brief) in apart]
        adjusted, shared = _paired(ranked, eps, record)
        return cls(ranked, _ranks(adjusted), beside, adjusted, shared)

    def completes(self, entry: Entry) -> str:
        """The command that evaluates an entry as the ranked ones were; empty where none is known."""
        return completing(entry.brief.about, self.ranked[0].brief.about, kept_folder(entry.brief)) if self.ranked else ""

    @property
    def admitting(self) -> str:
        """The command that evaluates another model, MODEL, as the ranked ones were; empty where none is known."""
        if not self.ranked:
            return ""
        about = self.ranked[0].brief.about
        return completing(about.but(model="MODEL", command=""), about)


def _ran_less(entries: Sequence[Entry]) -> dict[int, str]:
    """By the id of its brief: the diagnosis or audit that an entry lacks and others of the same images and attacks went through."""
    ran = [ChecksRan.of(one.brief, one.doubts, one.row) for one in entries]
    some_diagnosed, some_audited = any(one.diagnosis for one in ran), any(one.audit for one in ran)
    found: dict[int, str] = {}
    for entry, one in zip(entries, ran, strict=True):
        if one.diagnosis is False and some_diagnosed:
            found[id(entry.brief)] = "no diagnosis was run, those ranked were diagnosed"
        elif one.audit is False and some_audited:
            found[id(entry.brief)] = f"{one.unaudited} certified images were not audited, those of the ranked were"
    return found


def _paired(ranked: Sequence[Entry], eps: float, record: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Holm-adjusted McNemar p-values of all pairs (1 on the diagonal), and the images that each pair shares."""
    adjusted = np.ones((len(ranked), len(ranked)))
    if not ranked:
        return adjusted, np.zeros((0, 0), dtype=np.int64)
    index = ranked[0].brief.index
    if not all(np.array_equal(entry.brief.index, index) for entry in ranked):
        index = np.unique(np.concatenate([entry.brief.index for entry in ranked]))
    shape, whole = (len(ranked), len(index)), all(len(entry.brief.index) == len(index) for entry in ranked)
    right, answered = np.zeros(shape, dtype=bool), np.broadcast_to(True, shape) if whole else np.zeros(shape, dtype=bool)
    for place, entry in enumerate(ranked):
        images = slice(None) if whole else np.searchsorted(index, entry.brief.index)
        right[place, images] = entry.brief.robust[eps]
        if not whole:
            answered[place, images] = True
    found = PairedTests.of([f"{eps!r} {entry.brief.content}" for entry in ranked], right, answered, record)
    above = np.triu_indices(len(ranked), 1)
    adjusted[above] = adjusted.T[above] = holm(found.tests[above])
    return adjusted, found.shared


def _ranks(adjusted: np.ndarray) -> list[int]:
    """Down the order: a rank is shared with the best of it, up to the first model than which that one is significantly better."""
    ranks, best = list[int](), 0
    for place in range(len(adjusted)):
        if place and adjusted[best, place] <= ALPHA:
            best = place
        ranks.append(best + 1)
    return ranks
