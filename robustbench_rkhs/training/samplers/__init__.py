"""Samplers: distributions of images on which a function norm is penalised."""

from typing import Annotated

from pydantic import Field

from robustbench_rkhs.training.samplers.base import SamplerNode, Source
from robustbench_rkhs.training.samplers.data import DataSampler
from robustbench_rkhs.training.samplers.noise import GaussianSampler, UniformSampler
from robustbench_rkhs.training.samplers.vae import VAESampler

Sampler = Annotated[VAESampler | DataSampler | UniformSampler | GaussianSampler, Field(discriminator="name")]
"""Any sampler, chosen by `name`."""

__all__ = ["DataSampler", "GaussianSampler", "Sampler", "SamplerNode", "Source", "UniformSampler", "VAESampler"]
