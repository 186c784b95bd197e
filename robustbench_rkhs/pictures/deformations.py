"""Pictures of deformed images of the data sets."""

from pathlib import Path

from robustbench_rkhs.data import Deformations
from robustbench_rkhs.data.deformations import deform
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.reports.deformations import draw_deformations
from robustbench_rkhs.zoo import named_data

AFFINE = ("degrees", "scale", "shear", "translate")
"""Fields that are zero in an elastic deformation."""


def deformations_picture(data: str, out: Path, images: int = 4, seed: int = 0) -> list[Path]:
    """OUT/deformations-DATA.*: test images with affine, elastic and full deformations. Raises UserError for other data."""
    if images < 1:
        raise UserError(f"expected at least one image, found {images}")
    split = named_data(data).test().sample(images, seed)
    settings = suited(split.shape)
    kinds = {
        "affine": settings.model_copy(update={"amplitude": 0.0}),
        "elastic": settings.model_copy(update=dict.fromkeys(AFFINE, 0.0)),
        "both": settings,
    }
    deformed = []
    for name, kind in kinds.items():
        fields = kind(split.index, seed, split.shape)
        deformed.append((name, deform(split.x, fields).numpy(), fields.numpy()))
    title = f"{split.data}, seed {seed}: " + ", ".join(
        f"{key} {value:g}" for key, value in settings.model_dump(exclude={"count"}).items()
    )
    return draw_deformations(split.x.numpy(), deformed, out / f"deformations-{split.data}", title)


def suited(shape: tuple[int, ...]) -> Deformations:
    """Deformations large enough to be visible, in proportion to the image's shorter side."""
    side = min(shape[1:]) if len(shape) == 3 else 8
    return Deformations(degrees=15, translate=side / 16, amplitude=side / 10, smoothness=side / 7)
