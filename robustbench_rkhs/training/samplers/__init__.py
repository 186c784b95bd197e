"""Samplers: distributions of images on which a function norm is penalised."""

from typing import Annotated

from robustbench_rkhs.nodes.one_of import OneOf
from robustbench_rkhs.training.samplers.base import SamplerNode, Source
from robustbench_rkhs.training.samplers.data import DataSampler
from robustbench_rkhs.training.samplers.noise import GaussianSampler, UniformSampler
from robustbench_rkhs.training.samplers.vae import VAESampler

Sampler = Annotated[VAESampler | DataSampler | UniformSampler | GaussianSampler | SamplerNode, OneOf(SamplerNode, "samplers")]
"""Any sampler: ours by `name`, an instance of SamplerNode, or your own as package.module:Name."""

__all__ = ["DataSampler", "GaussianSampler", "Sampler", "SamplerNode", "Source", "UniformSampler", "VAESampler"]
