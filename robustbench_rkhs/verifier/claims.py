"""The certificates of a proof, each with its own re-check of radii."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import crown, eclipse, lagrangian, liplt
from .couplings import CoupledWitness, links
from .lagrangian import NOTHING, Found, Witness
from .leaves import LeafWitness, Split
from .operations import Operation, expected, size
from .proof import Proof, Rejected

SLACK = 1e-6
"""Relative tolerance of claims against the bounds proved here. Reported radii never exceed what is proved here."""
PLAIN, MORE, PARTS = {"rows", "slopes", "multipliers"}, {"pushes", "scales", "norms"}, {"part_of", "splits"}
"""What is stored of rows from balls, of couplings besides, and of rows that are proved in parts."""
WORDS = {"coupled": "couplings", "parts": "parts", "coupled_parts": "parts with couplings"}
"""Ways besides rows from balls alone."""
Outputs = tuple[np.ndarray, np.ndarray]
"""Logits, and bounds of their rounding."""


@dataclass
class Claim:
    """A certificate whose radii are re-checked."""

    number: int
    """Its place in the proof's list."""
    method: str
    radii: np.ndarray
    pairs: Any
    """Name of the array of its pair bounds."""
    witness: Any
    slopes: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """Recomputed pair bounds, once proved."""

    def found(self, proof: Proof, chain: Sequence[Operation], part: slice, x: np.ndarray, outputs: Outputs) -> Found:
        """The radii of some images that are proved here, and why one is 0."""
        logits, error = outputs
        return radii(logits, error, proof.array("label")[part], self.slopes, size(proof.shape), proof.about["norm"])

    def prove(self, proof: Proof, chain: Sequence[Operation], simple: np.ndarray) -> None:
        """Recompute the pair bounds, at most `simple` (norm products). Raises Rejected if a claimed one is smaller."""
        kind, classes = self.method.partition("#")[0], proof.classes
        claimed = proof.numbers(self.pairs, classes, classes)
        self.slopes = simple
        if kind != "margin":
            way = eclipse.pairs if kind == "eclipse" else liplt.pairs
            self.slopes = np.minimum(simple, way(chain, self.witness, classes))
        else:
            expected(self.witness == [], "margin has no witness")
        for y, j in zip(*np.nonzero(~(self.slopes <= claimed * (1 + SLACK))), strict=True):
            words = f"claimed bound {claimed[y, j]:.6g}, re-checked {self.slopes[y, j]:.6g}"
            raise Rejected(f"{self.method}, classes {y} and {j}: {words}")


@dataclass
class TiltedClaim(Claim):
    """A certificate by linear bounds from balls: slopes and multipliers for each image and pair of classes."""

    ways: list[Witness | LeafWitness] = field(default_factory=list)
    """Rows from balls alone, with couplings, and in parts."""

    def prove(self, proof: Proof, chain: Sequence[Operation], simple: np.ndarray) -> None:
        """Read the witness; the bounds are computed image by image."""
        expected(proof.about["norm"] == "l2" and self.pairs is None, f"{self.method} is re-checked in l2 alone")
        fine = isinstance(self.witness, dict) and PLAIN <= set(self.witness) <= PLAIN | set(WORDS)
        expected(fine, "expected rows, slopes and multipliers as witness")
        self.ways = [_plain(proof, chain, {key: self.witness[key] for key in PLAIN})]
        for name in WORDS:
            if name in self.witness:
                self.ways.append(_other(proof, chain, name, self.witness[name]))

    def found(self, proof: Proof, chain: Sequence[Operation], part: slice, x: np.ndarray, outputs: Outputs) -> Found:
        best, why = np.zeros(len(x)), [NOTHING] * len(x)
        for way in self.ways:
            claimed = np.where(best > 0, 0.0, self.radii[part])
            own, words = way.proved(chain, part, x, proof.array("label")[part], claimed, proof.classes)
            best = np.maximum(best, own)
            kept = [old if new == NOTHING else new for old, new in zip(why, words, strict=True)]
            why = ["" if best[at] > 0 else kept[at] for at in range(len(x))]
        return best, why


@dataclass
class RelaxedClaim(Claim):
    """A certificate by relaxations around each image, computed anew: no witness is needed."""

    def prove(self, proof: Proof, chain: Sequence[Operation], simple: np.ndarray) -> None:
        """Raises Malformed for a network with an operation without intervals."""
        expected(self.witness == [] and self.pairs is None, f"{self.method} has no witness")
        expected(chain[-1].outputs == (proof.classes,), f"expected {proof.classes} logits")

    def found(self, proof: Proof, chain: Sequence[Operation], part: slice, x: np.ndarray, outputs: Outputs) -> Found:
        label, linear = proof.array("label")[part], self.method.partition("#")[0] != "ibp"
        return crown.radii_proved(chain, x, label, self.radii[part], proof.classes, proof.about["norm"], linear, boxed(proof))


def boxed(proof: Proof) -> bool:
    """Whether radii hold within the pixel box alone."""
    return bool(proof.about.get("box", "none") == "unit")


def _other(proof: Proof, chain: Sequence[Operation], name: str, entry: Any) -> Witness | LeafWitness:
    keys = PLAIN | (MORE if "coupled" in name else set()) | (PARTS if "parts" in name else set())
    expected(isinstance(entry, dict) and set(entry) == keys, f"expected {sorted(keys)} of {WORDS[name]}")
    if "parts" not in name:
        return _coupled(proof, chain, entry)
    rows, part_of = _rows(proof, entry), proof.array(entry["part_of"], None)
    expected(part_of.dtype.kind == "i" and bool(((part_of >= 0) & (part_of < len(rows))).all()), "parts of rows that do not exist")
    found = (_coupled if "coupled" in name else _plain)(proof, chain, entry, part_of)
    return LeafWitness(rows, part_of, _splits(proof, chain, entry, len(part_of)), found)


def _splits(proof: Proof, chain: Sequence[Operation], entry: dict[str, Any], count: int) -> list[list[Split]]:
    """Of each of so many parts, in the order in which they are stored."""
    stored = proof.array(entry["splits"], None, 4)
    sizes = np.array([size(kink.inputs) for _, kink in lagrangian.kinks(chain)])
    expected(stored.dtype.kind == "i" and bool((stored >= 0).all()), "splits do not hold whole numbers from 0 up")
    limits = (count, len(sizes), sizes.max(initial=0), 2)
    fits = (stored < limits).all() and (stored[:, 2] < sizes[stored[:, 1]]).all()
    expected(bool(fits), "splits name parts, kinks, values or sides that do not exist")
    found: list[list[Split]] = [[] for _ in range(count)]
    for part, kink, unit, side in stored.tolist():
        found[part].append((kink, unit, side))
    return found


def _rows(proof: Proof, entry: dict[str, Any]) -> np.ndarray:
    """(image, other class) of each row."""
    rows = proof.array(entry["rows"], None, 2)
    expected(rows.dtype.kind == "i", "rows do not hold whole numbers")
    inside = (rows >= 0).all() and (rows[:, 0] < len(proof.array("images"))).all() and (rows[:, 1] < proof.classes).all()
    expected(bool(inside), "rows name images or classes that do not exist")
    return rows


def _plain(proof: Proof, chain: Sequence[Operation], entry: dict[str, Any], part_of: np.ndarray | None = None) -> Witness:
    places, rows = list(lagrangian.kinks(chain)), _rows(proof, entry)
    rows = rows if part_of is None else rows[part_of]
    slopes = _parts(proof, entry["slopes"], len(rows), chain, "slopes")
    multipliers = proof.numbers(entry["multipliers"], len(rows), len(places))
    expected(bool((multipliers > 0).all() and np.isfinite(multipliers).all()), "multipliers are not finite, or not above zero")
    return Witness(rows, slopes, multipliers, liplt.reached(chain), unit=boxed(proof))


def _coupled(proof: Proof, chain: Sequence[Operation], entry: dict[str, Any], part_of: np.ndarray | None = None) -> Witness:
    plain, found = _plain(proof, chain, entry, part_of), links(chain)
    count = len(_rows(proof, entry))
    pushes = _parts(proof, entry["pushes"], count, chain, "pushes")
    scales = _parts(proof, entry["scales"], count, chain, "scales", 1)
    expected(all(bool((part > 0).all()) for part in (*pushes, *scales)), "pushes or scales are not above zero")
    norms = proof.numbers(entry["norms"], count, len(found))
    both = plain.slopes, plain.multipliers, plain.reach
    return CoupledWitness(plain.rows, *both, pushes, scales, norms, found, unit=plain.unit, shared=part_of)


def _parts(proof: Proof, names: Any, count: int, chain: Sequence[Operation], what: str, less: int = 0) -> list[np.ndarray]:
    """Finite numbers for each kink, but for the last `less`."""
    places = list(lagrangian.kinks(chain))
    places = places[: len(places) - less]
    expected(isinstance(names, list) and len(names) == len(places), f"expected {what} of {len(places)} kinks")
    parts = [proof.numbers(name, count, size(kink.inputs)) for name, (_, kink) in zip(names, places, strict=True)]
    expected(all(bool(np.isfinite(part).all()) for part in parts), f"{what} are not finite")
    return parts


def radii(
    logits: np.ndarray, error: np.ndarray, label: np.ndarray, slopes: np.ndarray, pixels: int, norm: str
) -> tuple[np.ndarray, list[str]]:
    """min_j (f_y - f_j - 2 e) / L_yj, rounded down, and per image the reason if it is 0."""
    rows = np.arange(len(label))
    gaps = logits[rows, label][:, None] - logits
    gaps = gaps - 2 * error[:, None] - 4 * 2.0**-53 * np.abs(gaps)
    others = np.where(np.arange(logits.shape[1]) == label[:, None], np.inf, 0.0)
    found = np.where(gaps > 0, gaps / slopes[label], 0.0)
    found = np.where(others > 0, np.inf, found).min(1) * (1 - 1e-12)
    if norm == "linf":
        found = found / (math.sqrt(pixels) * (1 + 1e-12))
    wrong = logits.argmax(1) != label
    why = [
        f"but the network predicts class {logits[i].argmax()} and the label is {label[i]}"
        if wrong[i]
        else "but it is tied"
        if not found[i] > 0
        else ""
        for i in rows
    ]
    return np.where(np.isnan(found), 0.0, found), why
