"""What is evaluated: a model and its images, the rows of the table about them, and its finished parts."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from robustbench_rkhs import verdicts
from robustbench_rkhs.data import Split
from robustbench_rkhs.evaluation.cache_key import digest_of, sources_digest
from robustbench_rkhs.evaluation.row_cache import Pair, RowCache
from robustbench_rkhs.evaluation.workers import Workers
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.seals import Damaged
from robustbench_rkhs.verdicts import Nearest, Part


@dataclass(frozen=True)
class Subject:
    """The subject of an evaluation: a model in eval mode on a device, its images, and the names of both in the table."""

    model: nn.Module
    """What certificates look at."""
    queried: nn.Module
    """What is asked and attacked: the same function, its constants worked out."""
    split: Split
    name: str
    weights: str
    device: str
    seed: int
    parts: Path | None
    """Folder of finished parts; nothing is kept where None."""
    answers: str = ""
    """sha256 of its clean logits: code that changed while the weights did not must not be served old parts."""
    nearest: Nearest | None = None
    """Gathers the nearest adversarial image of each image, where they are asked for; every part then keeps its own beside it."""
    workers: Workers | None = field(default=None, compare=False, repr=False)
    """Take a block each, of an attack whose outcome for an image depends on no other; this process alone where None."""
    outside: dict[str, set[int]] = field(default_factory=dict, compare=False, repr=False)
    """Of each attack, the images for which it returned one outside box or ball."""
    row_caches: dict[str, RowCache] = field(default_factory=dict, compare=False, repr=False)
    """Finished rows of the jobs met so far, by the job's identity."""

    @property
    def input_digests(self) -> list[str]:
        return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in self.split.x.cpu().contiguous()]

    def rows(self, positions: Tensor, predicted: Tensor, input_digests: list[str], **columns: Any) -> pd.DataFrame:
        """Rows of the table for these images; every column not given has its neutral value."""
        split, where = self.split, positions.tolist()
        neutral: dict[str, Any] = {
            "model": self.name,
            "weights": self.weights,
            "data": split.data,
            "split": split.split,
            "norm": "l2",
            "box": "unit",
            "kind": "certificate",
            "method": "prediction",
            "settings": "",
            "eps": np.nan,
            "index": split.index[positions].cpu().numpy(),
            "input_sha256": [input_digests[i] for i in where],
            "label": split.y[positions].cpu().numpy(),
            "predicted": predicted[positions].cpu().numpy(),
            "state_reason": "",
            "radius": 0.0,
            "distance_l2": np.nan,
            "distance_linf": np.nan,
            "forwards": 0,
            "backwards": 0,
            "seconds": 0.0,
            "arithmetic": "",
            "failure_probability": 0.0,
        }
        return pd.DataFrame(neutral | columns, index=range(len(where)))

    def part(self, key: dict[str, Any], positions: Tensor, work: Callable[[], Part]) -> Part:
        """One job over these images, its rows and what it noticed: read where finished, else worked out and kept.

        Where adversarial images are asked for, a part that found some but holds none of them is done again.
        """
        identity = self.identity(key) | {"indices": digest_of(self.split.index[positions].tolist(), 64)}
        path = self.parts and self.parts / f"{digest_of(identity, 32)}.parquet"
        if path and path.is_file():
            try:
                stored = verdicts.read_part(path, self.nearest is not None)
                if digest_of(stored.noticed.part, 32) != path.stem:
                    raise Damaged(path, "it holds the part of another job")
                return self.gathered(stored)
            except UserError as damaged:
                verdicts.set_part_aside(path, damaged)  # and done again
        done = work()
        if path:
            verdicts.write_part(done.of(identity), path)
        return self.gathered(done)

    def each(self, key: dict[str, Any], positions: Tensor, eps: list[float], work: Callable[[Tensor], list[Part]]) -> Part:
        """A job whose outcome for an image depends on no other: rows that any part holds are read, the rest are new parts.

        `work`: new parts for positions among these. `eps`: each image's own; -1 where it has none.
        """
        identity = self.identity(key)
        name = digest_of(identity, 32)
        if name not in self.row_caches:
            self.row_caches[name] = RowCache(self.parts and self.parts / name, images=self.nearest is not None)
        shelf = self.row_caches[name]
        pairs: list[Pair] = list(zip(self.split.index[positions].tolist(), eps, strict=True))
        missing = [place for place, pair in enumerate(pairs) if pair not in shelf]
        if missing:
            for done in work(torch.tensor(missing, device=positions.device)):
                shelf.put(done, identity)
        return self.gathered(shelf.take(pairs))

    def gathered(self, done: Part) -> Part:
        """The part, once what it holds besides rows is gathered."""
        if self.nearest is not None and done.kept is not None:
            self.nearest.see(done.table, done.kept)
        for label, indices in done.noticed.outside.items():
            self.outside.setdefault(label, set()).update(indices)
        return done

    def identity(self, key: dict[str, Any]) -> dict[str, Any]:
        """What a job's rows depend on, besides which images it covers."""
        return {
            **key,
            "weights": self.weights,
            "answers": self.answers,
            "data": self.split.digest,
            "split": self.split.split,
            "model": self.name,
            "seed": self.seed,
            "sources": sources_digest(),
            "torch": torch.__version__,
            "device": torch.device(self.device).type,
            "threads": torch.get_num_threads() if torch.device(self.device).type == "cpu" else 0,
            "dtype": str(self.split.x.dtype),
        }
