"""A table in brief: what boards, and the choice of what is drawn together, need of it."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from robustbench_rkhs.verdicts.about import About
from robustbench_rkhs.verdicts.evaluation import Evaluation
from robustbench_rkhs.verdicts.remembered import remembered, remembering
from robustbench_rkhs.verdicts.schema import COLUMNS
from robustbench_rkhs.verdicts.soundness import breaches
from robustbench_rkhs.verdicts.store import digest, read
from robustbench_rkhs.verdicts.summaries import by_attack, robust_images, summary_rows


@dataclass(frozen=True, eq=False)
class Brief:
    """What a table says at its own eps. The table itself is read only where it is asked for."""

    about: About
    content: str
    """Digest of the table and its description."""
    digest: str
    """`verdicts.digest` of the table, which figures print."""
    sealed: bool
    images: int
    sample: str
    """Digest of the data and the indices of its images: equal for evaluations of the same images."""
    passes: float
    """Forward and backward passes of the protocol per attacked image."""
    rows: tuple[dict[str, Any], ...]
    """The rows of `verdicts.summary`, one per eps, by column."""
    masked: dict[float, tuple[str, ...]]
    """By eps, the attacks that were masked."""
    breaches: int
    index: Int[np.ndarray, " images"]
    """The images, ascending."""
    robust: dict[float, Bool[np.ndarray, " images"]]
    """By eps, whether each image is certified or survived."""
    path: Path | None = None
    held: Evaluation | None = None
    """The table, where it is in memory."""

    @classmethod
    def of(cls, one: "Evaluation | Brief") -> "Brief":
        """The brief of an evaluation. Raises UserError for a table that mixes models or data, or has no predictions.

        Cost: 20 ms for 200 images at three eps.
        """
        if isinstance(one, Brief):
            return one
        with remembering():
            return cls._summed_up(one)

    @classmethod
    def _summed_up(cls, one: Evaluation) -> "Brief":
        about, table = one.about, one.table
        epsilons = sorted(set(about.epsilons))
        attacks, index = by_attack(one), np.unique(table["index"].to_numpy())
        masked = {eps: tuple(sorted(attacks.loc[attacks["masked"] & (attacks["eps"] == eps), "attack"])) for eps in epsilons}
        robust = {eps: robust_images(one, eps).loc[index].to_numpy() for eps in epsilons}
        rows = tuple(summary_rows(one))
        own = table[(table["kind"] == "attack") & table["method"].isin(about.protocol)]
        passes = int(own["forwards"].sum() + own["backwards"].sum()) / max(own["index"].nunique(), 1)
        said = [about.data_digest or about.data, str(table["split"].iloc[0]) if len(table) else "", *map(int, index)]
        found = rows, masked, len(breaches(one)), index, robust
        return cls(about, content(one), digest(table), one.sealed, len(index), _sha(said), passes, *found, one.path, one)

    @cached_property
    def attacks(self) -> str:
        """The attacks of the protocol with their settings, as text: equal where the same attacks ran."""
        about = self.about
        named = about.settings.get("attacks") or [about.settings.get("effort")]
        return json.dumps([sorted(about.protocol), named], sort_keys=True, default=str)

    def evaluation(self) -> Evaluation:
        """The whole table. Raises UserError where its file is gone or damaged."""
        if self.held is not None:
            return self.held
        if self.path is None:
            raise ValueError("a brief has a table or the path of one")
        found = read(self.path, lambda one: content(one) == self.content)
        remembered(found, ("digest",), lambda: self.digest)
        return found

    def row(self, eps: float) -> dict[str, Any]:
        """The row of the summary at one of its eps."""
        return next(row for row in self.rows if row["eps"] == eps)

    def plain(self) -> dict[str, Any]:
        """As a JSON value."""
        packed = {repr(eps): np.packbits(right).tobytes().hex() for eps, right in self.robust.items()}
        return {
            "about": self.about.plain(),
            "content": self.content,
            "digest": self.digest,
            "sealed": self.sealed,
            "images": self.images,
            "sample": self.sample,
            "passes": self.passes,
            "rows": self.rows,
            "masked": [[eps, list(names)] for eps, names in self.masked.items()],
            "breaches": self.breaches,
            "index": _runs(self.index),
            "robust": packed,
        }

    @classmethod
    def read(cls, stored: dict[str, Any], path: Path) -> "Brief":
        """From the JSON of a record. Raises KeyError, TypeError or ValueError where it is of another form."""
        index = _of_runs(stored["index"])
        robust = {float(eps): _unpacked(text, len(index)) for eps, text in stored["robust"].items()}
        return cls(
            About.read(stored["about"], str(path)),
            str(stored["content"]),
            str(stored["digest"]),
            bool(stored["sealed"]),
            int(stored["images"]),
            str(stored["sample"]),
            float(stored["passes"]),
            tuple(dict(row) for row in stored["rows"]),
            {float(eps): tuple(names) for eps, names in stored["masked"]},
            int(stored["breaches"]),
            index,
            robust,
            path,
        )


def content(one: Evaluation) -> str:
    """sha256 of the table and its description; quicker than `verdicts.digest`, and with the seconds."""
    rows = pd.util.hash_pandas_object(one.table[COLUMNS], index=False).to_numpy()
    said = json.dumps([one.about.plain(), one.sealed], sort_keys=True, default=str)
    return hashlib.sha256(rows.tobytes() + said.encode()).hexdigest()


def _runs(index: np.ndarray) -> list[list[int]]:
    """The first and the count of each run of images that follow each other: most tables have one."""
    begins = np.flatnonzero(np.diff(index, prepend=-2) != 1)
    counts = np.diff(np.append(begins, len(index)))
    return [[first, count] for first, count in zip(index[begins].tolist(), counts.tolist(), strict=True)]


def _of_runs(runs: list[list[int]]) -> np.ndarray:
    if len(runs) == 1:  # most tables, and 20 us quicker
        ((first, count),) = runs
        return np.arange(first, first + count)
    return np.concatenate([np.arange(first, first + count) for first, count in runs] or [np.zeros(0, np.int64)])


def _unpacked(text: str, count: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8), count=count).astype(bool)


def _sha(value: list[Any]) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
