"""Blocks of images of certificates with a cost per image: small ones where an image is expensive, by counted cost."""

from collections.abc import Sequence

from robustbench_rkhs.evaluation.halving import joined
from robustbench_rkhs.evaluation.phase_state import Block, Places
from robustbench_rkhs.verdicts import Part

FIRST = 2
"""Images of the first block, on which the cost is counted."""
MOST = 16
"""Images of a block at most: more at once save next to nothing, also where an image is cheap."""
WORTH = 2 * 10**9
"""Multiply-adds of a block, about: a second or two. An interruption loses no more than that, or one image."""


def sized(first: Part, most: int) -> int:
    """Images of each further block, after the first one. The same on every machine: nothing is timed."""
    cost = cost_of(first)
    return max(1, min(MOST, most, int(WORTH / cost) if cost else MOST))


def cost_of(part: Part) -> float:
    """Multiply-adds per image, where they were counted; else 0."""
    return float(part.noticed.decided.get("multiply_adds", 0)) / max(len(part.table), 1)


def cut(places: Places, size: int) -> list[Block]:
    """These images in blocks of so many."""
    return [places[start : start + size] for start in range(0, len(places), max(size, 1))]


def whole(parts: Sequence[Part], images: int) -> Part | None:
    """The result for so many images from those of the blocks; None where some were not reached in time.

    A refusal concerns the model, so that it stands for all of them.
    """
    if not parts or (sum(len(part.table) for part in parts) < images and not refused(parts[0])):
        return None
    return joined(parts)


def refused(part: Part) -> bool:
    """Whether the certificate has no proof for this model."""
    return bool((part.table["state_reason"] == "refused").all())
