"""What is evaluated: a model and its images, and the rows of the table about them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from robustbench_rkhs.data import Split
from robustbench_rkhs.evaluation.cache_key import sources_digest


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
    key: str = ""
    """Which function the model is (`identity.py`)."""
    answers: str = ""
    """sha256 of its clean logits: code that changed while the weights did not must not be served old results."""
    images: bool = False
    """Whether the adversarial images of every row are kept beside it."""

    @cached_property
    def input_digests(self) -> list[str]:
        """sha256 of each image."""
        return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in self.split.x.cpu().contiguous()]

    @cached_property
    def places(self) -> dict[int, int]:
        """Where each image lies in the split, by its position in the original arrays."""
        return {index: place for place, index in enumerate(self.split.index.tolist())}

    def positions(self, index: Sequence[int]) -> Tensor:
        """Where these images lie in the split."""
        return torch.tensor([self.places[one] for one in index], dtype=torch.int64, device=self.device)

    def rows(self, positions: Tensor, predicted: Sequence[int], **columns: Any) -> pd.DataFrame:
        """Rows of the table for these images and the answers to them; every column not given has its neutral value."""
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
            "input_sha256": [self.input_digests[i] for i in where],
            "label": split.y[positions].cpu().numpy(),
            "predicted": np.asarray(predicted, dtype=np.int64),
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

    def identity(self) -> dict[str, Any]:
        """What the results of all jobs depend on."""
        return {
            "weights": self.weights,
            "key": self.key,
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
