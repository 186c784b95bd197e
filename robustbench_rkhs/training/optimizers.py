"""Optimisers, and learning-rate schedules as pure functions of progress."""

import math
from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from robustbench_rkhs.nodes.node import Node, Real
from robustbench_rkhs.nodes.one_of import OneOf


class OptimizerNode(Node):
    """Base class of optimisers. `build(parameters)` makes the optimiser; the schedule multiplies `lr`."""

    lr: Real = Field(0.05, gt=0)
    """Largest learning rate; the schedule multiplies it."""

    def build(self, parameters: Iterable[nn.Parameter], fused: bool = False) -> torch.optim.Optimizer:
        """`fused`: set by `on_device` trainings only: one kernel for all weights, with its learning rate on the device."""
        raise TypeError(f"{type(self).__name__} is not an optimiser by itself")


class SGD(OptimizerNode):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"] = "sgd"
    lr: Real = Field(0.05, gt=0)
    """Largest learning rate; the schedule multiplies it."""
    momentum: Real = Field(0.9, ge=0, lt=1)
    """Momentum: share of the last step that is repeated."""
    weight_decay: Real = Field(0.0, ge=0)
    """Weight decay: multiple of the weights that is added to their gradient."""
    nesterov: bool = False
    """Nesterov momentum."""

    def build(self, parameters: Iterable[nn.Parameter], fused: bool = False) -> torch.optim.Optimizer:
        """`fused`: one kernel for all weights, with its learning rate on the device."""
        return torch.optim.SGD(
            parameters,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
            fused=fused or None,
        )


class Adam(OptimizerNode):
    """Adam. Source: Kingma & Ba, ICLR 2015."""

    name: Literal["adam"] = "adam"
    lr: Real = Field(1e-3, gt=0)
    """Largest learning rate; the schedule multiplies it."""
    betas: tuple[Real, Real] = (0.9, 0.999)
    """Decay of the two running means."""
    weight_decay: Real = Field(0.0, ge=0)
    """Weight decay: multiple of the weights that is added to their gradient."""

    def build(self, parameters: Iterable[nn.Parameter], fused: bool = False) -> torch.optim.Optimizer:
        """`fused`: one kernel for all weights, with its learning rate on the device."""
        return torch.optim.Adam(parameters, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, fused=fused or None)


class ScheduleNode(Node):
    """Base class of schedules: a multiplier of the learning rate as a function of progress and epoch."""

    by_epoch: ClassVar[bool] = False
    """True: it depends on the epoch alone, not on how long the training is, so that a training can be lengthened."""

    def __call__(self, progress: float, epoch: int) -> float:
        """Multiplier of the learning rate; `progress` in [0, 1): the share of the training that is done, `epoch` from 0."""
        raise TypeError(f"{type(self).__name__} is not a schedule by itself")


class Constant(ScheduleNode):
    """The same learning rate throughout."""

    by_epoch: ClassVar[bool] = True

    name: Literal["constant"] = "constant"

    def __call__(self, progress: float, epoch: int) -> float:
        return 1.0


class Step(ScheduleNode):
    """gamma^(epoch // every)."""

    by_epoch: ClassVar[bool] = True

    name: Literal["step"] = "step"
    every: int = Field(30, ge=1)
    """Epochs between drops."""
    gamma: Real = Field(0.5, gt=0, le=1)
    """Factor of each drop."""

    def __call__(self, progress: float, epoch: int) -> float:
        return self.gamma ** (epoch // self.every)


class Cosine(ScheduleNode):
    """Half a cosine from 1 to 0 after a linear warm-up."""

    name: Literal["cosine"] = "cosine"
    warmup: Real = Field(0.0, ge=0, lt=1)
    """Share of the training in which the rate rises from 0."""

    def __call__(self, progress: float, epoch: int) -> float:
        if progress < self.warmup:
            return progress / self.warmup
        return (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup))) / 2


class OneCycle(ScheduleNode):
    """Linear from a twenty-fifth to 1 at `peak`, then half a cosine to nearly 0. Source: Smith & Topin, 2018."""

    name: Literal["one_cycle"] = "one_cycle"
    peak: Real = Field(0.3, gt=0, lt=1)
    """Share of the training at which the rate is largest."""

    def __call__(self, progress: float, epoch: int) -> float:
        if progress < self.peak:
            return 0.04 + 0.96 * progress / self.peak
        return max(1e-4, (1 + math.cos(math.pi * (progress - self.peak) / (1 - self.peak))) / 2)


class Triangular(ScheduleNode):
    """Linear from 0 to 1 at 40%, to 1/20 at 80%, to 0. Source: the schedule of Wang & Manchester, ICML 2023."""

    name: Literal["triangular"] = "triangular"

    def __call__(self, progress: float, epoch: int) -> float:
        if progress < 0.4:
            return progress / 0.4
        if progress < 0.8:
            return 1 - 0.95 * (progress - 0.4) / 0.4
        return 0.05 * (1 - progress) / 0.2


Optimizer = Annotated[SGD | Adam | OptimizerNode, OneOf(OptimizerNode, "optimizers")]
"""Any optimiser: ours by `name`, an instance of OptimizerNode, or your own as package.module:Name."""
Schedule = Annotated[Constant | Step | Cosine | OneCycle | Triangular | ScheduleNode, OneOf(ScheduleNode, "schedules")]
"""Any learning-rate schedule: ours by `name`, an instance of ScheduleNode, or your own as package.module:Name."""
