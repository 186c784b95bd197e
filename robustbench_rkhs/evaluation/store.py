"""The store of finished jobs: their results are read, never computed twice."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from robustbench_rkhs import verdicts
from robustbench_rkhs.evaluation.cache_key import digest_of
from robustbench_rkhs.evaluation.exchange import Exchange
from robustbench_rkhs.evaluation.jobs import Job
from robustbench_rkhs.evaluation.pair_places import Pair
from robustbench_rkhs.evaluation.row_cache import RowCache
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.seals import Damaged
from robustbench_rkhs.verdicts import Nearest, Part

UNFINISHED = ("error", "timeout")
"""Reasons of rows that are computed again next time."""


class Store:
    """Results by the key of their job: per-image ones by row, the others whole. Only in memory without a folder."""

    def __init__(
        self,
        folder: Path | None = None,
        nearest: Nearest | None = None,
        exchange: Exchange | None = None,
        data: str | None = None,
    ) -> None:
        """`nearest` collects the nearest adversarial images, if wanted; every part then keeps its own beside it. `exchange`: with
        machines that share no folder. `data`: the name of the data set now, which its parts may have been stored without."""
        self.folder, self.nearest, self.exchange, self.data = folder, nearest, exchange, data
        self.outside: dict[str, set[int]] = {}
        """By attack, the images for which it returned a point outside box or ball."""
        self._rows: dict[str, RowCache] = {}
        self._whole: dict[str, Part] = {}

    def open(self, job: Job) -> Job | None:
        """The part of a job that is still to be computed; None if all of it is stored."""
        if job.by_image:
            rows = self._cache(job)
            missing = [place for place, pair in enumerate(_pairs(job)) if pair not in rows]
            return job.at(missing) if missing else None
        return None if self._found(job) else job

    def elsewhere(self, job: Job) -> bool:
        """Whether another process has stored all of a job by now."""
        if job.by_image:
            self._cache(job).refresh()
        return self.open(job) is None

    def take(self, job: Job) -> Part:
        """The result of a job that is stored."""
        if job.by_image:
            return self.gathered(self._cache(job).take(_pairs(job)))
        part = self._whole[job.name]
        path = self._path(job)
        if job.phase == "predict" or (path and path.is_file()):
            del self._whole[job.name]  # it is asked for once, or read again
        return self.gathered(part)

    def put(self, job: Job, part: Part) -> None:
        """Store the result of a job. One with unfinished rows is kept for this evaluation only."""
        finished = not part.table["state_reason"].isin(UNFINISHED).any()
        if job.by_image:
            self._cache(job).put(part, job.identity(), finished)
            return
        self._whole[job.name] = part
        if finished and (path := self._path(job)):
            verdicts.write_part(part.of(_identity(job)), path)
            if self.exchange:
                self.exchange.put(path)

    def gathered(self, part: Part) -> Part:
        """The part under the data set's present name, once what it holds besides rows is gathered."""
        if self.data is not None and "data" in part.table and (part.table["data"] != self.data).any():
            part = replace(part, table=part.table.assign(data=self.data))  # of the same images, as their digest is in the key
        if self.nearest is not None and part.kept is not None:
            self.nearest.see(part.table, part.kept)
        for label, indices in part.noticed.outside.items():
            self.outside.setdefault(label, set()).update(indices)
        return part

    def _found(self, job: Job) -> bool:
        path = self._path(job)
        if self.exchange and path and job.name not in self._whole:
            self.exchange.fetch(path)
        if job.name not in self._whole and path and path.is_file():
            try:
                part = verdicts.read_part(path, self.nearest is not None)
                if digest_of(part.noticed.part, 32) != path.stem:
                    raise Damaged(path, "it holds the part of another job")
                self._whole[job.name] = part
            except UserError as damaged:
                verdicts.set_part_aside(path, damaged)  # and done again
        return job.name in self._whole

    def _path(self, job: Job) -> Path | None:
        if job.phase == "predict":
            return None  # asked anew each time: so that no result is taken for one of a model that changed
        return self.folder / f"{digest_of(_identity(job), 32)}.parquet" if self.folder else None

    def _cache(self, job: Job) -> RowCache:
        key = job.key
        if key not in self._rows:
            self._rows[key] = RowCache(self.folder and self.folder / key, self.nearest is not None, self.exchange)
        return self._rows[key]


def _identity(job: Job) -> dict[str, Any]:
    """Of a job that is kept whole: with its images."""
    return job.identity() | {"indices": digest_of(list(job.index), 64)}


def _pairs(job: Job) -> list[Pair]:
    return [(index, eps if eps < float("inf") else -1.0) for index, eps in zip(job.index, job.budgets, strict=True)]
