"""Noise samplers: images of independent pixels."""

from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from robustbench_rkhs.data import Split
from robustbench_rkhs.training.samplers.base import SamplerNode, Source, normals, uniforms


class UniformSampler(SamplerNode):
    """Every pixel uniform between the smallest and the largest pixel of the training images (usually 0 and 1)."""

    name: Literal["uniform"] = "uniform"

    def prepare(self, split: Split, seed: int) -> Source:
        low, high, shape, device = split.x.min(), split.x.max(), split.shape, split.x.device

        def source(keys: Int[Tensor, " batch"], count: int) -> Float[Tensor, "samples *image"]:
            share = uniforms(keys, seed, count, shape).float().to(device)
            return low + (high - low) * share

        return source


class GaussianSampler(SamplerNode):
    r"""s = mu + sigma z with the mean and standard deviation of each pixel over the training images, z standard normal.

    Cut to [0, 1] where the images are (box `unit`). The covariance is diagonal.
    """

    name: Literal["gaussian"] = "gaussian"

    def prepare(self, split: Split, seed: int) -> Source:
        mean, std, shape, box = split.x.mean(0), split.x.std(0, correction=0), split.shape, split.box

        def source(keys: Int[Tensor, " batch"], count: int) -> Float[Tensor, "samples *image"]:
            images = mean + std * normals(keys, seed, count, shape).to(mean)
            return images.clamp(0, 1) if box == "unit" else images

        return source
