"""The state of each image at an eps: wrong, broken, certified, survived or untested."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from robustbench_rkhs.nodes.node import UserError, as_number
from robustbench_rkhs.verdicts.record import Record
from robustbench_rkhs.verdicts.remembered import remembered
from robustbench_rkhs.verdicts.schema import ANSWERS

STATES = ["wrong", "broken", "certified", "survived", "untested"]
ASIDE = ("audit:", "check:", "first:", "transfer")
"""Prefixes of methods that break images and test soundness, but are not part of the protocol."""


@dataclass(frozen=True)
class Evidence:
    """The table reduced to one entry per image, in one norm: enough to compute the states at any eps."""

    index: Int[np.ndarray, " images"]
    correct: Bool[np.ndarray, " images"]
    certified: Float[np.ndarray, " images"]
    """Largest proved radius; -1 where the prediction is wrong."""
    broken: Float[np.ndarray, " images"]
    """Distance of the nearest counted adversarial image of any attack, inf if none."""
    runs: pd.DataFrame
    """Attacks of the protocol that ran to their end: position, method, eps, radius, broken (distance in the norm)."""
    protocol: tuple[str, ...]
    unconfirmed: pd.DataFrame
    """Attacks, of the protocol or not, whose adversarial example was not confirmed: position, eps. Not counted as survived."""

    @classmethod
    def of(cls, evaluation: Record, norm: str | None = None) -> "Evidence":
        """Reduce the table. Raises UserError where it mixes models or data, or an image has no prediction."""
        return remembered(evaluation, ("evidence", norm), lambda: cls._of(evaluation, norm))

    @classmethod
    def _of(cls, evaluation: Record, norm: str | None) -> "Evidence":
        table, about = evaluation.table, evaluation.about
        norm, box = norm or about.norm, about.box
        for column in ("model", "weights", "data", "split"):
            if table[column].nunique() > 1:
                raise UserError(f"expected the verdicts of one {column}, found {sorted(table[column].unique())[:3]}")
        own = (table["kind"] == "certificate") & (table["method"] == "prediction")
        said = table.loc[own, ["index", "label", "predicted"]]
        said = said.drop_duplicates("index").sort_values("index")
        where = pd.Index(said["index"])
        position = where.get_indexer(pd.Index(table["index"]))
        if (position < 0).any():
            raise UserError(f"image {table['index'][position < 0].iloc[0]} has verdicts but no row of method 'prediction'")
        correct = (said["label"] == said["predicted"]).to_numpy()
        certified = np.where(correct, 0.0, -1.0)
        proofs = proved(table, norm, box)
        np.maximum.at(certified, position[proofs], table["radius"].to_numpy(dtype=np.float64)[proofs])
        certified[~correct] = -1.0
        distance = table[f"distance_{norm}"].to_numpy(dtype=np.float64)
        falls = counted(table, norm, box)
        broken = np.full(len(said), np.inf)
        np.minimum.at(broken, position[falls], distance[falls])
        protocol = about.protocol
        ran = (table["kind"] == "attack") & (table["norm"] == norm) & (table["box"] == box)
        doubted = (ran & (table["state_reason"] == "unconfirmed")).to_numpy()
        unconfirmed = pd.DataFrame({"position": position[doubted], "eps": table["eps"].to_numpy(dtype=np.float64)[doubted]})
        ran &= table["method"].isin(protocol) & table["state_reason"].isin(ANSWERS)
        runs = table.loc[ran, ["method", "eps", "radius", "forwards", "backwards"]].assign(position=position[ran.to_numpy()])
        return cls(where.to_numpy(), correct, certified, broken, runs, protocol, unconfirmed)

    def states(self, eps: float | str) -> pd.DataFrame:
        """As `states`."""
        codes, inferred = self.codes(eps)
        frame = {"state": pd.array(STATES, dtype="str").take(codes), "inferred": inferred}  # quicker than from texts
        return pd.DataFrame(frame, index=pd.Index(self.index, name="index"))

    def codes(self, eps: float | str) -> tuple[Int[np.ndarray, " images"], Bool[np.ndarray, " images"]]:
        """The places of the states in STATES, and which of them are inferred. Neither may be changed: others have them, too."""
        return remembered(self, ("codes", as_number(eps)), lambda: self._codes(as_number(eps)))

    def _codes(self, eps: float) -> tuple[Int[np.ndarray, " images"], Bool[np.ndarray, " images"]]:
        if not eps >= 0:
            raise UserError(f"eps must not be negative, found {eps}")
        runs, inferred = self.runs, np.zeros(len(self.index), dtype=bool)
        budget, radius = runs["eps"].to_numpy(dtype=np.float64), runs["radius"].to_numpy(dtype=np.float64)
        position, count = runs["position"].to_numpy(), len(self.index)
        withstood, itself = np.full(count, bool(self.protocol)), np.zeros(count, dtype=bool)
        for method in self.protocol:
            own = (runs["method"] == method).to_numpy()
            found = np.full(count, np.inf)  # the method's own adversarial images
            np.minimum.at(found, position[own], radius[own])
            # a larger budget says nothing about eps where it found something (an attack in the larger ball need not stay in the
            # smaller), nor where the method took it back by what it found within that budget when it ran at another
            larger = (budget > eps) & np.isinf(radius) & (budget < found[position])
            this = own & (radius > eps) & (np.isnan(budget) | (budget == eps) | larger)
            withstood &= _marked(position[this], count)
            exact = _marked(position[this & (budget == eps)], count)
            itself |= exact
            inferred |= ~exact & ~_marked(position[this & np.isnan(budget)], count)
        inferred |= ~itself
        doubted = (self.unconfirmed["eps"] == eps) | self.unconfirmed["eps"].isna()
        withstood[self.unconfirmed.loc[doubted, "position"]] = False
        choices = [~self.correct, self.broken <= eps, self.certified >= eps, withstood]
        codes = np.select(choices, range(4), 4)
        return codes, inferred & (codes == STATES.index("survived"))


def states(evaluation: Record, eps: float | str, norm: str | None = None) -> pd.DataFrame:
    """The state of every image at eps, in the evaluation's norm or the given one.

    `state`: `wrong`: misclassified without attack; else `broken`: any attack has an admissible adversarial image at distance
    <= eps; else `certified`: a certificate's radius is >= eps; else `survived`: every method of the protocol ran to its end with
    budget eps (or none, or a larger one within which it found nothing, then or when it ran at another) and found nothing within
    eps; else `untested`, also where an adversarial example at eps was not confirmed by a second query. `inferred`: survived, but no
    method, or not every method that has budgets, ran at eps itself. Raises UserError for a negative eps or a table without
    predictions.
    """
    return Evidence.of(evaluation, norm).states(eps)


def counted(table: pd.DataFrame, norm: str, box: str) -> Bool[np.ndarray, " rows"]:
    """Rows with an adversarial image that is admissible in `box`, from attacks in any norm."""
    found = (table["kind"] == "attack") & table[f"distance_{norm}"].notna()
    return (found & ((table["box"] == "unit") | (box == "none"))).to_numpy()


def proved(table: pd.DataFrame, norm: str, box: str) -> Bool[np.ndarray, " rows"]:
    """Rows whose radius is proved in `norm` on a domain that covers `box`."""
    rows = (table["kind"] == "certificate") & (table["norm"] == norm) & ~table["state_reason"].isin(["refused", "error"])
    return (rows & ((table["box"] == "none") | (box == "unit"))).to_numpy()


def _marked(positions: Int[np.ndarray, " some"], count: int) -> Bool[np.ndarray, " count"]:
    marks = np.zeros(count, dtype=bool)
    marks[positions] = True
    return marks
