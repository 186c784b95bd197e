"""Where the row of each (image, eps) is: the number of its part, and its row there."""

from collections.abc import Sequence

import numpy as np

Pair = tuple[int, float]
"""An image's index and the eps of the attack; -1 without a budget."""


class PairPlaces:
    """Two sorted arrays for each eps, of 16 bytes per pair together; a dictionary takes 300. The first place of a pair stays."""

    def __init__(self) -> None:
        self._index: dict[float, np.ndarray] = {}
        self._place: dict[float, np.ndarray] = {}

    def __len__(self) -> int:
        return sum(map(len, self._index.values()))

    def __contains__(self, pair: Pair) -> bool:
        return self._slot(pair) is not None

    def __getitem__(self, pair: Pair) -> tuple[int, int]:
        """Raises KeyError where it is not there."""
        if (slot := self._slot(pair)) is None:
            raise KeyError(pair)
        part, row = self._place[pair[1]][slot]
        return int(part), int(row)

    def add(self, pairs: Sequence[Pair], part: int) -> None:
        """The rows of a part, in their order."""
        for eps in dict.fromkeys(eps for _, eps in pairs):
            rows = [row for row, (index, own) in enumerate(pairs) if own == eps and (index, eps) not in self]
            new = np.array([pairs[row][0] for row in rows], dtype=np.int64)
            new, first = np.unique(new, return_index=True)
            places = np.array([(part, rows[one]) for one in first], dtype=np.int32).reshape(-1, 2)
            known = self._index.get(eps, np.zeros(0, dtype=np.int64))
            slots = np.searchsorted(known, new)
            self._index[eps] = np.insert(known, slots, new)
            self._place[eps] = np.insert(self._place.get(eps, np.zeros((0, 2), dtype=np.int32)), slots, places, axis=0)

    def _slot(self, pair: Pair) -> int | None:
        index, eps = pair
        if eps not in self._index:
            return None
        known = self._index[eps]
        slot = int(np.searchsorted(known, index))
        return slot if slot < len(known) and known[slot] == index else None
