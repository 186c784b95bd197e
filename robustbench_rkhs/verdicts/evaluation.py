"""Evaluation: the result of an evaluation, a table with metadata, with the common queries as methods."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.sinks import for_html
from robustbench_rkhs.verdicts.adversarials import Adversarials
from robustbench_rkhs.verdicts.model_marks import doubts, no_function
from robustbench_rkhs.verdicts.record import Record
from robustbench_rkhs.verdicts.summaries import accuracy_at, certified_at, robust_range, summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class _Arrays(NamedTuple):
    """The nearest adversarial image of each image that has one, by index; tensors if returned by `evaluate`."""

    images: Any
    """(count, *shape), exactly as queried."""
    labels: Any
    """Their true classes."""
    predictions: Any
    """The predicted class of each; -1 where the logits are not finite."""
    distances: Any
    """Distance to the clean image, in the norm of the evaluation; 0 where the clean image is misclassified."""
    index: Any
    """Position of the clean image in the data that was passed."""


class AdversarialImages(_Arrays):
    """The nearest adversarial image of each image that has one: five arrays, and the column `bits` where that was asked for."""

    bits: Any = None
    """`bits`, where the image has pixels k / (2^bits - 1) and is adversarial; 0 where it has not. None where nobody asked."""


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(Record):
    """One model's table of verdicts with its metadata.

    The common queries are `robust_accuracy(eps)`, `certified_accuracy(eps)`, `summary()`, `plot()` and `adversarials()`;
    `table` has one row per verdict, and `about` has the model, data, threat model and protocol.
    """

    nearest: Adversarials | None = None
    """The nearest adversarial image of each image, if they were kept. Not stored with the table."""
    path: Path | None = None
    """The file it is in."""
    tensor: Callable[[np.ndarray], Any] = np.asarray
    """Converts the arrays of `adversarials`: verdicts do not import torch, so `evaluate` passes its `from_numpy`."""
    sealed: bool = True
    """Whether its file carries the digest of its content; older files without it are not ranked."""

    def summary(self, eps: Iterable[float | str] | float | str | None = None) -> pd.DataFrame:
        """One row per eps (default: the evaluated ones): shares with 95% limits, counts."""
        return summary(self, eps)

    def robust_accuracy(self, eps: float | str) -> float:
        """The share of images that are classified correctly and that no attack broke within eps.

        Raises UserError while images are untested at eps: then only its range is known, `robust_range(eps)`.
        """
        return accuracy_at(self, eps).share

    def robust_range(self, eps: float | str) -> tuple[float, float]:
        """The shares certified and not known to be broken at eps: robust accuracy lies between them, even with untested images."""
        return robust_range(self, eps)

    def certified_accuracy(self, eps: float | str) -> float:
        """The share of images classified correctly and proved robust within eps: a lower bound of robust accuracy."""
        return certified_at(self, eps).share

    def adversarials(self) -> AdversarialImages:
        """The nearest adversarial image of each image that has one, over all attacks; misclassified images count as their own.

        Raises UserError where none were kept.
        """
        found = self.nearest
        if found is None:
            raise UserError("no adversarial images were kept: evaluate(..., adversarials=True) keeps them")
        arrays = (found.images, found.label, found.predicted_adversarial, found.distance, found.index)
        images = AdversarialImages(*(self.tensor(array) for array in arrays))
        images.bits = None if found.bits is None else self.tensor(found.bits)
        return images

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """Plots certified and robust accuracy over eps with 95% limits on these matplotlib axes or new ones; returns the axes."""
        from robustbench_rkhs.verdicts.plot import accuracy_axes  # matplotlib takes longer to import than everything else here

        return accuracy_axes(self, axes)

    def _repr_html_(self) -> str:
        """The summary as notebooks show it."""
        about, rows = self.about, []
        box = "" if about.box == "unit" else ", no box"
        for row in self.summary().to_dict("records"):
            shares = [_limits(row, part) for part in ("clean", "robust", "certified")]
            if why := no_function(self):
                shares = [f"withheld: {for_html(why)}"] * 3
            elif row["count_untested"]:
                shares[1] = f"withheld: {row['certified']:.1%} to {row['not_broken']:.1%}"
            rows.append("".join(f"<td>{cell}</td>" for cell in (about.words(row["eps"]), *shares, row["count_untested"])))
        head = "".join(f"<th>{word}</th>" for word in ("eps", "clean", "robust", "certified", "untested images"))
        title = f"{for_html(about.model)} on {for_html(about.data)}, {about.norm}{box}, {self.table['index'].nunique()} images"
        lines = [f"DOUBTFUL {line}" for line in doubts(self)] + [f"UNSOUND {breach}" for breach in about.breaches]
        lines += [] if about.complete else ["incomplete: robust accuracy is withheld where images are untested"]
        said = "".join(f"<p>{for_html(line)}</p>" for line in [*lines, *about.failed])
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table><caption>{title}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{said}"


def _limits(row: dict[Any, Any], part: str) -> str:
    return f"{row[part]:.1%} [{row[f'{part}_low']:.1%}, {row[f'{part}_high']:.1%}]"
