"""The paired tests of all pairs of a board; those of models that did not change are taken from a record."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from robustbench_rkhs.runtime.files import Unwritable, write_whole
from robustbench_rkhs.runtime.ignored import ignored
from robustbench_rkhs.verdicts import mcnemar_all, mcnemar_between
from robustbench_rkhs.verdicts.brief_cache import code_digest

MANY = 200
"""Models from which a record is worth its room, 12 MB for 1,000 models: fewer are tested in the time of reading it."""
FEW = 200
"""Changed models, one in so many, for which a record is not written again: their tests are made again as quickly."""


@dataclass(frozen=True)
class PairedTests:
    """The p-value of each pair of models, and the number of images that both answered."""

    who: tuple[str, ...]
    """Digests of what the models' rows depend on."""
    tests: Float[np.ndarray, "models models"]
    shared: Int[np.ndarray, "models models"]

    @classmethod
    def of(
        cls,
        who: Sequence[str],
        right: Bool[np.ndarray, "models images"],
        answered: Bool[np.ndarray, "models images"],
        record: Path | None = None,
    ) -> "PairedTests":
        """`mcnemar_all` of these models. `record`: where the tests of the last time are, and those of this time are left.

        Cost: that of the pairs of models that the record does not have, and 20 ms for the record of 1,000 models.
        """
        if record is None or len(who) < MANY:
            return cls(tuple(who), *mcnemar_all(right, answered))
        before = cls._read(record)
        places = {one: place for place, one in enumerate(before.who)} if before is not None else {}
        new = np.array([place for place, one in enumerate(who) if one not in places], dtype=np.int64)
        if before is None or 2 * len(new) > len(who):
            found = cls(tuple(who), *mcnemar_all(right, answered))
        else:
            found = cls(tuple(who), *before._taken([places.get(one, 0) for one in who]))
            tests, shared = mcnemar_between(right[new], answered[new], right, answered)
            found.tests[new], found.shared[new] = tests, shared
            found.tests[:, new], found.shared[:, new] = tests.T, shared.T
        if before is None or FEW * len(new) > len(who) or 2 * len(who) < len(before.who):
            found._write(record)
        return found

    def _taken(self, places: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        chosen = np.ix_(places, places)
        return self.tests[chosen], self.shared[chosen].astype(np.int64)

    @classmethod
    def _read(cls, path: Path) -> "PairedTests | None":
        """From its record; None where there is none, or it is damaged."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                who, tests, shared, said = (stored[name] for name in ("who", "tests", "shared", "sha256"))
            forms = [(one.dtype.kind, one.ndim) for one in (who, tests, shared)]
            if forms != [("U", 1), ("f", 2), ("i", 2)] or str(said) != _digest(who, tests, shared):
                return None
        except Exception:  # whatever numpy and zipfile raise at a damaged file: it is made again
            return None
        count = len(who)
        return cls(tuple(who.tolist()), tests, shared) if tests.shape == shared.shape == (count, count) else None

    def _write(self, path: Path) -> None:
        who, shared = np.array(self.who), self.shared.astype(np.int32)
        sha = np.array(_digest(who, self.tests, shared))

        def write(temporary: Path) -> None:
            with temporary.open("wb") as handle:
                np.savez(handle, who=who, tests=self.tests, shared=shared, sha256=sha)

        try:
            write_whole(ignored(path.parent) / path.name, write)
        except Unwritable:
            pass  # the next time it is computed again


def record_of(folder: Path, board: str) -> Path:
    """Where the record of a board is."""
    return folder / f"pairs-{board}.npz"


def remove_records(folder: Path, ranked: Mapping[str, int]) -> None:
    """Remove the records in a folder but those of boards with MANY models. `ranked`: how many each board has."""
    kept = {record_of(folder, board) for board, count in ranked.items() if count >= MANY}
    for path in set(folder.glob(record_of(folder, "*").name)) - kept:
        with suppress(OSError):  # where nothing may be removed it takes room, no more
            path.unlink()


def _digest(who: np.ndarray, tests: np.ndarray, shared: np.ndarray) -> str:
    sha = hashlib.sha256("\n".join([code_digest(), *who.tolist()]).encode())
    for values in (tests, shared):
        sha.update(np.ascontiguousarray(values).data)
    return sha.hexdigest()
