"""Sampler of the training images."""

from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from robustbench_rkhs.data import Split
from robustbench_rkhs.training.samplers.base import SamplerNode, Source, uniforms


class DataSampler(SamplerNode):
    """Training images, drawn uniformly with replacement; no augmentation."""

    name: Literal["data"] = "data"

    def prepare(self, split: Split, seed: int) -> Source:
        images = split.x

        def source(keys: Int[Tensor, " batch"], count: int) -> Float[Tensor, "samples *image"]:
            place = (uniforms(keys, seed, count, ()) * len(images)).long().clamp_max(len(images) - 1)
            return images[place.to(images.device)]

        return source
