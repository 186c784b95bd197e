"""The digests of images, gathered from the rows that say them: 32 bytes per image."""

from collections.abc import Sequence

import numpy as np

from robustbench_rkhs.evaluation.image_places import ImagePlaces
from robustbench_rkhs.nodes.node import UserError


class ImageDigests:
    """sha256 of each image that some row named. Images are not read for it."""

    def __init__(self, index: np.ndarray) -> None:
        """`index`: the images of the evaluation, by their positions in the original arrays."""
        self._places = ImagePlaces(index)
        self._digests = np.zeros((len(index), 32), dtype=np.uint8)
        self._known = np.zeros(len(index), dtype=bool)

    def note(self, index: Sequence[int], digests: Sequence[str]) -> None:
        """Take the digests, in hex, that rows have. Raises UserError where another row of that image has another one."""
        places = self._places(index)
        said = np.frombuffer(bytes.fromhex("".join(digests)), dtype=np.uint8).reshape(-1, 32)
        known = self._known[places]
        others = known & (self._digests[places] != said).any(1)
        if others.any():
            raise UserError(f"image {np.asarray(index)[others][0]} stands for two different images: expected one data set")
        self._digests[places], self._known[places] = said, True

    def __call__(self, index: Sequence[int]) -> list[str]:
        """The digests of these images, in hex."""
        return [self._digests[place].tobytes().hex() for place in self._places(index)]
