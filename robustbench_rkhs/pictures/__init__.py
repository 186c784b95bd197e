"""Pictures: deformations, learning curves, fits of the square wave, and samples."""

from robustbench_rkhs.pictures.deformations import deformations_picture, suited
from robustbench_rkhs.pictures.fits import square_wave_picture
from robustbench_rkhs.pictures.runs import curves_picture, learning_picture
from robustbench_rkhs.pictures.samples import vae_picture
from robustbench_rkhs.pictures.saved_adversarials import nearest_picture

__all__ = [
    "curves_picture",
    "deformations_picture",
    "learning_picture",
    "nearest_picture",
    "square_wave_picture",
    "suited",
    "vae_picture",
]
