"""Re-check of proofs in parts: each leaf of a tree of splits is bounded, and the leaves are shown to cover all cases."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from .chain import Chain, dense
from .crown import Lines, walk
from .intervals import Box, ball, over
from .lagrangian import NOTHING, Found, Rows, Witness, kinks
from .liplt import Path
from .operations import Operation, size

TOGETHER = 64
"""Leaves that are bounded at once."""
FEW = 512
"""Rows are taken back for values before a kink where an image has at most so many uncertain ones."""
LARGEST = 2**24
"""Most numbers of a matrix."""
Split = tuple[int, int, int]
"""Kink (in order), value, and side: 0 where it is at most zero, 1 where it is at least zero."""


def covers(leaves: Sequence[Sequence[Split]]) -> bool:
    """Whether splits, each leaf's from the root on, form a tree whose splits have both sides: then every point lies in a leaf.

    At each depth, the leaves that went the same way so far either hold one that ends there, or all split the same value.
    """
    groups = [(list(leaves), 0)]
    while groups:
        group, depth = groups.pop()
        if any(len(leaf) == depth for leaf in group):
            continue
        if not group or len({leaf[depth][:2] for leaf in group}) != 1:
            return False
        for side in (0, 1):
            groups.append(([leaf for leaf in group if leaf[depth][2] == side], depth + 1))
    return True


@dataclass
class Around(Lines):
    """Intervals over one l2 ball, from intervals, balls of layers and, where few values are uncertain, rows."""

    rows: Rows | None = None
    """Knows the ball of each layer."""
    matrices: dict[Path, tuple[np.ndarray, float]] = field(default_factory=dict)
    """Of affine runs, by the position of what follows them; filled as they are needed."""

    def of(self, image: np.ndarray) -> Lines:
        return Lines(self.chain, self.x[image], self.radius[image], self.norm, image, self.boxes, unit=self.unit)

    def known(self, chain: Chain, at: int, path: Path, straight: int) -> Box | None:
        """From the ball of what enters the affine run before: its radius times the length of each row."""
        assert self.rows is not None
        start = at
        while start and chain[start - 1].affine:
            start -= 1
        here, begun = (*path, at), (*path, start)
        run: list[Operation] = list(chain[start:at])
        center, radius = self.rows.inputs[begun][0], self.rows.ball(begun)
        if not run:
            return ball(center, radius)
        if size(run[0].inputs) * size(run[-1].outputs) > LARGEST:
            return None
        if here not in self.matrices:
            self.matrices[here] = dense(run)
        return over(run, self.matrices[here], center, radius, "l2")

    def worth(self, unsure: np.ndarray) -> bool:
        return int(unsure.reshape(len(unsure), -1).sum(1).max(initial=0)) <= FEW


@dataclass
class LeafWitness:
    """What is stored of rows that are proved in parts."""

    pairs: np.ndarray
    """(image, other class) of each row."""
    pair: np.ndarray
    """The row that each leaf is a part of."""
    splits: list[list[Split]]
    """Of each leaf, from the root on."""
    bounds: Witness
    """Slopes and multipliers of each leaf; curvatures, if any, of each row (`CoupledWitness.shared`)."""
    matrices: dict[Path, tuple[np.ndarray, float]] = field(default_factory=dict)

    def proved(self, chain: Chain, part: slice, x: np.ndarray, label: np.ndarray, claimed: np.ndarray, classes: int) -> Found:
        """The claimed l2 radius of each image where every leaf of every other class is proved above zero over its ball, else 0."""
        found, why = np.zeros(len(x)), [NOTHING] * len(x)
        for place, number in enumerate(range(part.start, part.stop)):
            rows = np.nonzero(self.pairs[:, 0] == number)[0]
            others = np.delete(np.arange(classes), label[place])
            if not claimed[place] > 0 or not np.array_equal(np.sort(self.pairs[rows, 1]), others):
                continue
            why[place] = self._refused(chain, rows, x[place][None], float(claimed[place]), int(label[place]), classes)
            found[place] = 0.0 if why[place] else claimed[place]
        return found, why

    def _refused(self, chain: Chain, rows: np.ndarray, x: np.ndarray, radius: float, label: int, classes: int) -> str:
        """Why an image is not proved; empty if it is."""
        leaves = {row: np.nonzero(self.pair == row)[0] for row in rows.tolist()}
        for row, at in leaves.items():
            if not covers([self.splits[leaf] for leaf in at]):
                return f"but against class {self.pairs[row, 1]} its parts do not cover all cases"
        known, eye = self.known(chain, x, radius), np.eye(classes)
        for row, at in leaves.items():
            c = (eye[label] - eye[self.pairs[row, 1]])[None]
            for start in range(0, len(at), TOGETHER):
                some = at[start : start + TOGETHER]
                many = np.full(len(some), radius)
                made = self.bounds.made(chain, some, np.repeat(x, len(some), axis=0), many)
                made.intervals = self.intervals(chain, known, some)
                bound = np.nan_to_num(made.bounds(np.repeat(c, len(some), axis=0)), nan=-np.inf)
                if not bool((bound > 0).all()):
                    return f"but against class {self.pairs[row, 1]} the lower bound of a part is {bound.min():.4g}"
        return ""

    def known(self, chain: Chain, x: np.ndarray, radius: float) -> Around:
        """The intervals around an image, which all of its parts share."""
        one, unit = np.full(1, radius), self.bounds.unit
        rows = Rows(chain, x, one, {}, {}, self.bounds.reach, unit=unit)
        rows.begin()
        found = Around(chain, x, one, "l2", np.zeros(1, int), unit=unit, rows=rows, matrices=self.matrices)
        with np.errstate(all="ignore"):
            walk(found, ball(x, one, unit))
        return found

    def intervals(self, chain: Chain, known: Around, leaves: np.ndarray) -> dict[Path, tuple[np.ndarray, np.ndarray]]:
        """Those of some leaves: cut at zero by their splits."""
        found = {}
        for number, (path, _) in enumerate(kinks(chain)):
            low, high = (np.repeat(end.reshape(1, -1), len(leaves), axis=0) for end in known.boxes[path])
            for place, leaf in enumerate(leaves.tolist()):
                for unit, side in self._cuts(leaf, number):
                    if side:
                        low[place, unit] = max(low[place, unit], 0.0)
                    else:
                        high[place, unit] = min(high[place, unit], 0.0)
            found[path] = low, high
        return found

    def _cuts(self, leaf: int, number: int) -> Iterator[tuple[int, int]]:
        return ((unit, side) for kink, unit, side in self.splits[leaf] if kink == number)
