"""The row cache of a per-image job: cached rows are read, the rest is computed and cached."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from robustbench_rkhs import verdicts
from robustbench_rkhs.evaluation.cache_key import digest_of
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.seals import Damaged
from robustbench_rkhs.verdicts import Kept, Noticed, Part

Pair = tuple[int, float]
"""An image's index and the eps of the attack; -1 without a budget."""


class RowCache:
    """The parts of one job, with the part of each (image, eps).

    So no row is computed again after a change of block size or epsilons, or a stop in the middle of a block. Each part is
    a file named after the pairs it holds, whole or absent. Rows of an attack that failed are not written: it is tried again next
    time. Nothing is written where there is no folder.
    """

    def __init__(self, folder: Path | None, images: bool = False) -> None:
        """`images`: a part that found adversarial images but holds none of them is done again."""
        self.folder, self.images = folder, images
        self.parts: list[Part] = []
        self.where: dict[Pair, tuple[int, int]] = {}
        self._known = set[str]()
        """Names of the files that were read or written."""
        self.refresh()

    def refresh(self) -> None:
        """Read the parts that other processes wrote meanwhile."""
        for path in sorted(self.folder.glob("*.parquet")) if self.folder else []:
            if path.name in self._known:
                continue
            self._known.add(path.name)
            try:
                part = verdicts.read_part(path, self.images)
                if (digest_of(part.noticed.part, 32), name_of(part.table)) != (path.parent.name, path.stem):
                    raise Damaged(path, "it holds the part of another job")
                self._hold(part)
            except UserError as damaged:
                verdicts.set_part_aside(path, damaged)  # and done again
                self._known.discard(path.name)

    def __contains__(self, pair: Pair) -> bool:
        return pair in self.where

    def put(self, done: Part, identity: dict[str, Any], finished: bool = True) -> None:
        """Keep a part; in memory alone where not `finished`."""
        if self.folder and finished:
            path = self.folder / f"{name_of(done.table)}.parquet"
            verdicts.write_part(done.of(identity), path)
            self._known.add(path.name)
        self._hold(done)

    def take(self, pairs: Sequence[Pair]) -> Part:
        """The rows of these pairs, in their order, and what was noticed of them."""
        places: dict[int, list[int]] = {}
        for pair in pairs:
            part, row = self.where[pair]
            places.setdefault(part, []).append(row)
        (first, rows), *others = places.items()
        if not others and rows == list(range(len(self.parts[first].table))):
            table = self.parts[first].table  # a part just finished: not held twice
        else:
            table = pd.concat([self.parts[part].table.iloc[rows] for part, rows in places.items()], ignore_index=True)
            order = {pair: place for place, pair in enumerate(pairs_of(table))}
            table = table.iloc[[order[pair] for pair in pairs]].reset_index(drop=True)
        found = set(zip(table["index"].tolist(), table["radius"].tolist(), strict=True))
        noted = [breach for part in places for breach in self.parts[part].noticed.breaches]
        left: dict[str, list[int]] = {}
        for part in places:
            for label, indices in self.parts[part].noticed.outside.items():
                left.setdefault(label, []).extend(set(indices) & set(table["index"]))
        noticed = Noticed(
            breaches=tuple(one for one in noted if (one.index, one.distance) in found),
            outside={label: tuple(indices) for label, indices in left.items()},
            failed=tuple(dict.fromkeys(line for part in places for line in self.parts[part].noticed.failed)),
        )
        return Part(table, noticed, self._kept(pairs) if self.images else None)

    def _kept(self, pairs: Sequence[Pair]) -> Kept:
        """The adversarial images of these pairs' rows, where they hold one."""
        images, said = [], []
        for part, row in (self.where[pair] for pair in pairs):
            held, kept = np.isfinite(self.parts[part].table["radius"].to_numpy()), self.parts[part].kept
            if held[row] and kept is not None:
                place = int(held[:row].sum())
                images.append(kept.images[place])
                said.append(int(kept.predicted[place]))
        return Kept(np.stack(images) if images else np.zeros(0), np.array(said, dtype=np.int64))

    def _hold(self, part: Part) -> None:
        for row, pair in enumerate(pairs_of(part.table)):
            self.where.setdefault(pair, (len(self.parts), row))
        self.parts.append(part)


def name_of(table: pd.DataFrame) -> str:
    """What the file of these rows is called: the digest of their pairs."""
    return hashlib.sha256(json.dumps(pairs_of(table)).encode()).hexdigest()[:32]


def pairs_of(table: pd.DataFrame) -> list[Pair]:
    """The (image, eps) of each row."""
    return list(zip(table["index"].tolist(), table["eps"].fillna(-1.0).tolist(), strict=True))
