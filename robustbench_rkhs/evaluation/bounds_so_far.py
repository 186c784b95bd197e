"""Bounds of the robust accuracy at each eps while an evaluation runs, from the rows of the table found so far."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from robustbench_rkhs.evaluation.image_places import ImagePlaces
from robustbench_rkhs.nodes.threat_model import Box, Norm
from robustbench_rkhs.runtime.events import Between
from robustbench_rkhs.verdicts.image_states import counted, proved


class BoundsSoFar:
    """From below the share of images that are certified, from above the share that is right and not broken.

    Both count all images of the evaluation. An image that is certified and broken counts as broken. Nothing is known before every
    image was classified.
    """

    def __init__(self, index: Sequence[int] | np.ndarray, epsilons: Sequence[float], norm: Norm, box: Box) -> None:
        self.places = ImagePlaces(np.asarray(index, dtype=np.int64))
        self.epsilons, self.norm, self.box = sorted(set(epsilons)), norm, box
        self.images = images = len(index)
        self.asked, self.right = np.zeros(images, dtype=bool), np.zeros(images, dtype=bool)
        self.certified, self.broken = np.zeros(images), np.full(images, np.inf)

    def see(self, table: pd.DataFrame) -> None:
        """Take these rows into account."""
        places = self.places(table["index"].to_numpy())
        said = ((table["kind"] == "certificate") & (table["method"] == "prediction")).to_numpy()
        self.asked[places[said]] = True
        self.right[places[said]] = (table["label"] == table["predicted"]).to_numpy()[said]
        proofs, falls = proved(table, self.norm, self.box), counted(table, self.norm, self.box)
        np.maximum.at(self.certified, places[proofs], table["radius"].to_numpy(dtype=np.float64)[proofs])
        np.minimum.at(self.broken, places[falls], table[f"distance_{self.norm}"].to_numpy(dtype=np.float64)[falls])

    def known(self) -> tuple[Between, ...]:
        """The bounds at each eps; none where an image was not classified yet, or where there is none."""
        if not len(self.asked) or not self.asked.all():
            return ()
        found = []
        for eps in self.epsilons:
            open_ = self.right & (self.broken > eps)
            found.append(Between(eps=eps, low=float((open_ & (self.certified >= eps)).mean()), high=float(open_.mean())))
        return tuple(found)
