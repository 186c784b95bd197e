"""What is still ahead of the attacks of an ensemble, as far as it is known: for the progress that is told."""

from collections.abc import Sequence


class WorkAhead:
    """Passes that are still ahead of each attack."""

    def __init__(self, works: Sequence[float], images: Sequence[int]) -> None:
        """`works`: passes of one image by each attack; `images`: on how many it is expected to run."""
        self.works, self.passes = works, [work * count for work, count in zip(works, images, strict=True)]

    def set(self, place: int, images: int) -> None:
        """So many images are ahead of this attack."""
        self.passes[place] = self.works[place] * images

    def share(self, place: int, images: int, later: int = 0) -> float:
        """What share of all that is ahead this attack on so many images is; it has `later` ones ahead afterwards."""
        now = self.works[place] * images
        self.set(place, later)
        return now / max(now + sum(self.passes), 1e-300)
