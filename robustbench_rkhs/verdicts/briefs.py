"""A table in brief: what boards, and the choice of what is drawn together, need of it."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from robustbench_rkhs.verdicts.about import About
from robustbench_rkhs.verdicts.evaluation import Evaluation
from robustbench_rkhs.verdicts.schema import COLUMNS
from robustbench_rkhs.verdicts.soundness import breaches
from robustbench_rkhs.verdicts.store import read
from robustbench_rkhs.verdicts.summaries import by_attack, robust_images, summary


@dataclass(frozen=True, eq=False)
class Brief:
    """What a table says at its own eps. The table itself is read only where it is asked for."""

    about: About
    content: str
    """Digest of the table and its description."""
    sealed: bool
    images: int
    sample: str
    """Digest of the data and the indices of its images: equal for evaluations of the same images."""
    passes: float
    """Forward and backward passes of the protocol per attacked image."""
    summary: pd.DataFrame
    """As `verdicts.summary`, one row per eps."""
    masked: dict[float, tuple[str, ...]]
    """By eps, the attacks that were masked."""
    breaches: int
    robust: pd.DataFrame
    """Whether each image is certified or survived (rows: image index; columns: eps)."""
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
        about, table = one.about, one.table
        epsilons = sorted(set(about.epsilons))
        attacks, index = by_attack(one), np.unique(table["index"].to_numpy())
        masked = {eps: tuple(sorted(attacks.loc[attacks["masked"] & (attacks["eps"] == eps), "attack"])) for eps in epsilons}
        robust = pd.DataFrame({eps: robust_images(one, eps) for eps in epsilons}, index=pd.Index(index, name="index"))
        own = table[(table["kind"] == "attack") & table["method"].isin(about.protocol)]
        passes = int(own["forwards"].sum() + own["backwards"].sum()) / max(own["index"].nunique(), 1)
        said = [about.data_digest or about.data, str(table["split"].iloc[0]) if len(table) else "", *map(int, index)]
        found = summary(one), masked, len(breaches(one)), robust
        return cls(about, content(one), one.sealed, len(index), _sha(said), passes, *found, one.path, one)

    @property
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
        return read(self.path)

    def but(self, about: About) -> "Brief":
        """The brief of the same table with another description. Cost: that of a new brief."""
        return Brief.of(replace(self.evaluation(), about=about))

    def plain(self) -> dict[str, Any]:
        """As a JSON value."""
        packed = {repr(eps): np.packbits(self.robust[eps].to_numpy(dtype=bool)).tobytes().hex() for eps in self.robust.columns}
        return {
            "about": self.about.plain(),
            "content": self.content,
            "sealed": self.sealed,
            "images": self.images,
            "sample": self.sample,
            "passes": self.passes,
            "summary": self.summary.to_dict("list"),
            "masked": [[eps, list(names)] for eps, names in self.masked.items()],
            "breaches": self.breaches,
            "index": self.robust.index.tolist(),
            "robust": packed,
        }

    @classmethod
    def read(cls, stored: dict[str, Any], path: Path) -> "Brief":
        """From the JSON of a record. Raises KeyError, TypeError or ValueError where it is of another form."""
        index = pd.Index(np.array(stored["index"], dtype=np.int64), name="index")
        robust = {float(eps): _unpacked(text, len(index)) for eps, text in stored["robust"].items()}
        return cls(
            About.read(stored["about"], str(path)),
            str(stored["content"]),
            bool(stored["sealed"]),
            int(stored["images"]),
            str(stored["sample"]),
            float(stored["passes"]),
            pd.DataFrame(stored["summary"]),
            {float(eps): tuple(names) for eps, names in stored["masked"]},
            int(stored["breaches"]),
            pd.DataFrame(robust, index=index),
            path,
        )


def content(one: Evaluation) -> str:
    """sha256 of the table and its description; quicker than `verdicts.digest`, and with the seconds."""
    rows = pd.util.hash_pandas_object(one.table[COLUMNS], index=False).to_numpy()
    said = json.dumps([one.about.plain(), one.sealed], sort_keys=True, default=str)
    return hashlib.sha256(rows.tobytes() + said.encode()).hexdigest()


def _unpacked(text: str, count: int) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8), count=count).astype(bool)


def _sha(value: list[Any]) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
