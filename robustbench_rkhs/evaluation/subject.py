"""The subject of an evaluation: a model and its images, and their rows in the table."""

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
from robustbench_rkhs.evaluation.image_places import ImagePlaces


@dataclass(frozen=True)
class Subject:
    """The subject of an evaluation: a model in eval mode on a device, its images, and the names of both in the table."""

    model: nn.Module
    """The model for certificates."""
    queried: nn.Module
    """The queried and attacked model: the same function, with constants precomputed."""
    split: Split
    name: str
    weights: str
    device: str
    seed: int
    key: str = ""
    """The key of the model's function (`identity.py`)."""
    images: bool = False
    """Whether adversarial images are kept beside the rows."""

    @cached_property
    def input_digests(self) -> np.ndarray:
        """sha256 of each image, as bytes: (images, 32)."""
        found = np.zeros((len(self.split), 32), dtype=np.uint8)
        for place, image in enumerate(self.split.x.cpu().contiguous()):
            found[place] = np.frombuffer(hashlib.sha256(image.numpy().tobytes()).digest(), dtype=np.uint8)
        return found

    @cached_property
    def places(self) -> ImagePlaces:
        """Position in the split of each image, by its position in the original arrays."""
        return ImagePlaces(self.split.index.cpu().numpy())

    def positions(self, index: Sequence[int]) -> Tensor:
        """Positions of these images in the split."""
        return torch.from_numpy(self.places(index)).to(self.device)

    def rows(self, positions: Tensor, predicted: Sequence[int], **columns: Any) -> pd.DataFrame:
        """Rows of the table for these images and predictions; every column not given has its default."""
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
            "input_sha256": [self.input_digests[place].tobytes().hex() for place in where],
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
        """Everything that the results of all jobs depend on."""
        return {
            "weights": self.weights,
            "key": self.key,
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
