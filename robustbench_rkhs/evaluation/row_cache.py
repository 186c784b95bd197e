"""The row cache of a per-image job: cached rows are read, the rest is computed and cached."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from robustbench_rkhs import verdicts
from robustbench_rkhs.evaluation.cache_key import digest_of
from robustbench_rkhs.evaluation.exchange import Exchange
from robustbench_rkhs.evaluation.pair_places import Pair, PairPlaces
from robustbench_rkhs.evaluation.tables import compact
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.seals import Damaged
from robustbench_rkhs.verdicts import Kept, Noticed, Part

MOST = 4
"""Most parts with a file that are in memory at once."""


class RowCache:
    """The parts of one job, with the part of each (image, eps).

    So no row is computed again after a change of block size, sample or epsilons, or a stop in the middle of a block. Each part is
    a file named after the pairs it holds, whole or absent; few of those that have a file are in memory at once. Rows of an attack
    that failed are not written: it is tried again next time. Nothing is written where there is no folder.
    """

    def __init__(self, folder: Path | None, images: bool = False, exchange: Exchange | None = None) -> None:
        """`images`: a part that found adversarial images but holds none of them is done again. `exchange`: with machines that
        share no folder."""
        self.folder, self.images, self.exchange = folder, images, exchange
        self.where = PairPlaces()
        self._files: list[Path | None] = []
        """Of each part; None where it is in memory alone."""
        self._held: dict[int, Part] = {}
        """Parts in memory, the one used last at the end."""
        self._known = set[str]()
        """Names of the files that were read or written."""
        self.refresh()

    def refresh(self) -> None:
        """Read the parts that other processes wrote meanwhile."""
        if self.folder and self.exchange:
            self.exchange.fetch_all(self.folder)
        for path in sorted(self.folder.glob("*.parquet")) if self.folder else []:
            if path.name in self._known:
                continue
            self._known.add(path.name)
            try:
                self._hold(self._read(path), path)
            except UserError as damaged:
                verdicts.set_part_aside(path, damaged)  # and done again
                self._known.discard(path.name)

    def __contains__(self, pair: Pair) -> bool:
        return pair in self.where

    def put(self, done: Part, identity: dict[str, Any], finished: bool = True) -> None:
        """Keep a part; in memory alone where not `finished`."""
        path = self.folder / f"{name_of(done.table)}.parquet" if self.folder and finished else None
        if path:
            verdicts.write_part(done.of(identity), path)
            self._known.add(path.name)
            if self.exchange:
                self.exchange.put(path)
        self._hold(done, path)

    def take(self, pairs: Sequence[Pair]) -> Part:
        """The rows of these pairs, in their order, and what was noticed of them. Raises UserError where a file is gone since."""
        places: dict[int, list[int]] = {}
        for pair in pairs:
            number, row = self.where[pair]
            places.setdefault(number, []).append(row)
        parts = {number: self._part(number) for number in places}
        (first, rows), *others = places.items()
        if not others and rows == list(range(len(parts[first].table))):
            table = parts[first].table  # a part just finished: not held twice
        else:
            table = pd.concat([parts[one].table.iloc[rows] for one, rows in places.items()], ignore_index=True)
            order = {pair: place for place, pair in enumerate(pairs_of(table))}
            table = table.iloc[[order[pair] for pair in pairs]].reset_index(drop=True)
        found = set(zip(table["index"].tolist(), table["radius"].tolist(), strict=True))
        noted = [breach for part in parts.values() for breach in part.noticed.breaches]
        left: dict[str, list[int]] = {}
        for part in parts.values():
            for label, indices in part.noticed.outside.items():
                left.setdefault(label, []).extend(set(indices) & set(table["index"]))
        noticed = Noticed(
            breaches=tuple(one for one in noted if (one.index, one.distance) in found),
            outside={label: tuple(indices) for label, indices in left.items()},
            failed=tuple(dict.fromkeys(line for part in parts.values() for line in part.noticed.failed)),
        )
        return Part(table, noticed, self._kept(pairs, parts) if self.images else None)

    def _kept(self, pairs: Sequence[Pair], parts: Mapping[int, Part]) -> Kept:
        """The adversarial images of these pairs' rows, where they hold one."""
        images, said = [], []
        for part, row in (self.where[pair] for pair in pairs):
            held, kept = np.isfinite(parts[part].table["radius"].to_numpy()), parts[part].kept
            if held[row] and kept is not None:
                place = int(held[:row].sum())
                images.append(kept.images[place])
                said.append(int(kept.predicted[place]))
        return Kept(np.stack(images) if images else np.zeros(0), np.array(said, dtype=np.int64))

    def _read(self, path: Path) -> Part:
        part = verdicts.read_part(path, self.images)
        if (digest_of(part.noticed.part, 32), name_of(part.table)) != (path.parent.name, path.stem):
            raise Damaged(path, "it holds the part of another job")
        return part

    def _part(self, number: int) -> Part:
        """A part from memory, or read again."""
        if number not in self._held:
            path = self._files[number]
            assert path is not None
            self._keep(number, self._read(path))
        return self._held[number]

    def _hold(self, part: Part, path: Path | None) -> None:
        number = len(self._files)
        self._files.append(path)
        self.where.add(pairs_of(part.table), number)
        self._keep(number, part if path else replace(part, table=compact(part.table)))

    def _keep(self, number: int, part: Part) -> None:
        self._held[number] = part
        filed = [one for one in self._held if self._files[one] is not None]
        for one in filed[:-MOST]:
            del self._held[one]


def name_of(table: pd.DataFrame) -> str:
    """What the file of these rows is called: the digest of their pairs."""
    return hashlib.sha256(json.dumps(pairs_of(table)).encode()).hexdigest()[:32]


def pairs_of(table: pd.DataFrame) -> list[Pair]:
    """The (image, eps) of each row."""
    return list(zip(table["index"].tolist(), table["eps"].fillna(-1.0).tolist(), strict=True))
