"""The positions of images in a split, looked up by their positions in the original arrays."""

from collections.abc import Sequence

import numpy as np


class ImagePlaces:
    """A sorted array in place of a dictionary, which takes 100 bytes per image; the given one where it is sorted."""

    def __init__(self, index: np.ndarray) -> None:
        self._sorted = index
        self._order: np.ndarray | None = None
        if (np.diff(index) < 0).any():
            self._order = np.argsort(index, kind="stable")
            self._sorted = index[self._order]

    def __call__(self, index: Sequence[int] | np.ndarray) -> np.ndarray:
        """Their positions. Raises KeyError for an image that is not there."""
        asked = np.asarray(index, dtype=self._sorted.dtype)
        if not len(asked):
            return np.zeros(0, dtype=np.int64)
        slots = np.minimum(np.searchsorted(self._sorted, asked), len(self._sorted) - 1)
        missing = self._sorted[slots] != asked if len(self._sorted) else np.ones(len(asked), dtype=bool)
        if missing.any():
            raise KeyError(int(asked[missing][0]))
        return slots if self._order is None else self._order[slots]
