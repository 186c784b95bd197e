"""Smaller batches when memory runs out."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch

from robustbench_rkhs.verdicts import Kept, Noticed, Part


def out_of_memory(error: BaseException) -> bool:
    """Whether an error reports that memory ran out, of a device or of this machine."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator: can't allocate" in str(error)


class Halving:
    """Batch size of jobs: all images, until memory runs out; from then on half as many."""

    def __init__(self) -> None:
        self.most: dict[str, int] = {}
        """By method, the batch size that fits."""

    def __call__(self, label: str, images: int, compute: Callable[[Sequence[int]], Part]) -> Part:
        """The result of `compute` for all places, in as many pieces as the memory requires, which is noted in the part.

        Raises the memory error if even one image is too many.
        """
        parts: list[Part] = []
        start, said = 0, []
        while start < images or not parts:
            size = min(self.most.get(label, images), images - start)
            try:
                parts.append(compute(range(start, start + size)))
                start += size
                continue
            except Exception as error:
                if not out_of_memory(error) or size <= 1:
                    raise
            self.most[label] = size // 2  # outside of `except`, so that memory held by the error is released first
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            said = [f"{label}: out of memory with {size} images at once; going on with {size // 2}"]
        return joined(parts, said)


def joined(parts: Sequence[Part], said: Sequence[str] = ()) -> Part:
    """One part of several, in their order."""
    if len(parts) == 1 and not said:
        return parts[0]
    noticed = [part.noticed for part in parts]
    outside: dict[str, tuple[int, ...]] = {}
    for one in noticed:
        for label, indices in one.outside.items():
            outside[label] = (*outside.get(label, ()), *indices)
    costs = [one.decided["multiply_adds"] for one in noticed if "multiply_adds" in one.decided]
    both = Noticed(
        decided={"multiply_adds": sum(costs)} if costs else {},
        breaches=tuple(breach for one in noticed for breach in one.breaches),
        outside=outside,
        refused=tuple(dict.fromkeys(line for one in noticed for line in one.refused)),
        failed=tuple(dict.fromkeys(line for one in noticed for line in one.failed)),
        said=tuple(dict.fromkeys([*said, *(line for one in noticed for line in one.said)])),
    )
    kept = [part.kept for part in parts if part.kept is not None and len(part.kept.images)]
    images = Kept(*(np.concatenate(arrays) for arrays in zip(*kept, strict=True))) if kept else parts[0].kept
    return Part(pd.concat([part.table for part in parts], ignore_index=True), both, images)
