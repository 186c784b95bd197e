"""The model's answers to clean images so far: a larger sample goes on from a smaller one, and changed code gets nothing old."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from robustbench_rkhs.evaluation.cache_key import digest_of
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime import seals
from robustbench_rkhs.runtime.digests import weights_digest
from robustbench_rkhs.runtime.files import exclusive
from robustbench_rkhs.verdicts.adversarials import write_arrays

NUMBERS = 16
"""Most numbers kept of an image's logits: of more classes, sums of them with random signs."""
CLOSE = 1e-5
"""Answers are the same where each number differs by at most this share of the spread of the image's logits: another batch
changes their last bits."""
CHUNK = 4096
"""Images whose logits are in float64 at once."""


def answers_digest(
    folder: Path | None, identity: Mapping[str, Any], index: np.ndarray, logits: Float[Tensor, "images classes"]
) -> str:
    """What stands for the model's answers in every key: the sha256 of its clean logits at the first evaluation of this identity.

    It stays as long as the answers to all images that were asked before are the same; answers to new images are then added to the
    record in `folder`. Where one of them has changed, or nothing is recorded, it is the sha256 of these logits, and a new record
    begins. Evaluations at the same time wait for each other here. Raises Unwritable. Cost: 128 bytes of disk per image.
    """
    own = weights_digest({"logits": logits})
    if folder is None:
        return own
    with exclusive(folder):
        return _merged(folder / f"answers-{digest_of(identity, 32)}.npz", own, index, logits)


def _merged(path: Path, own: str, index: np.ndarray, logits: Tensor) -> str:
    """The name that holds after these answers, which the record at `path` then contains."""
    known, (kept, spread) = _read(path), _kept(logits)
    name, all_index, all_kept = own, index, kept
    if known is not None:
        _, before, now = np.intersect1d(known["index"], index, return_indices=True)
        if (np.abs(known["kept"][before] - kept[now]) <= CLOSE * spread[now, None]).all():
            name, new = str(known["name"][0]), np.setdiff1d(np.arange(len(index)), now)
            if not len(new):
                return name
            all_index, all_kept = np.append(known["index"], index[new]), np.append(known["kept"], kept[new], 0)
    write_arrays(path, {"name": np.array([name]), "index": all_index, "kept": all_kept}, durable=False)
    return name


def _kept(logits: Tensor) -> tuple[Float64[np.ndarray, "images numbers"], Float64[np.ndarray, " images"]]:
    """The numbers kept of each image's logits, and their spread (largest - smallest)."""
    classes = logits.shape[1]
    signs = torch.randint(2, (classes, NUMBERS), generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    kept, spread = [], []
    for some in logits.cpu().split(CHUNK):
        exact = some.double()
        kept.append((exact if classes <= NUMBERS else exact @ signs).numpy())
        spread.append((exact.amax(1) - exact.amin(1)).numpy())
    return np.concatenate(kept), np.concatenate(spread)


def _read(path: Path) -> dict[str, np.ndarray] | None:
    """A record; None where there is none, or it is damaged."""
    with suppress(OSError, ValueError, KeyError, UserError):
        seals.seal_of(path, required=True)
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in ("name", "index", "kept")}
    return None
