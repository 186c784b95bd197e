"""Function-norm penalty: the mean square of the logits on images drawn from a sampler."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from robustbench_rkhs.data import Split
from robustbench_rkhs.nodes.node import Real, UserError
from robustbench_rkhs.runtime.modes import on_first, on_its_own, per_image, without_dropout
from robustbench_rkhs.training.penalties.base import PenaltyNode, keys_or_count
from robustbench_rkhs.training.samplers import Sampler, Source, VAESampler

MODES: dict[str, Callable[[nn.Module], AbstractContextManager[None]]] = {
    "batch": per_image,
    "split": on_its_own,
    "contaminated": without_dropout,
}
"""The mode of the pass of the norm, which reaches BatchNorm in the last two only."""


class FunctionNorm(PenaltyNode):
    r"""Penalise the squared L2 norm of the network as a function, weighted by a distribution Q of images.

    .. math:: \lambda \lVert f \rVert_{2,Q}^2 = \lambda\, E_{s \sim Q} \lVert f(s) \rVert_2^2
              \approx \frac{\lambda}{n m} \sum_{i=1}^{n} \sum_{j=1}^{m} \lVert f(s_{ij}) \rVert_2^2

    f: logits; s_ij: sample j of training image i, seeded by (seed, key, j), so that a resumed training and any split of the
    batch over processes use the same samples. Samples have pixels in [0, 1] and pass the network's normalisation, as the
    training images do (the published code skips it). They carry no gradient. Dropout is off.
    Cost: m forward and backward passes over a batch, and the sampler's; `prepare` trains the sampler (a resumed training
    trains it again, to the same bits on the same kind of device). Raises UserError where it was not prepared.
    Source: Rannen Triki, Berman & Blaschko, arXiv 1710.06703; the exact norm is NP-hard beyond two layers.
    """

    name: Literal["function_norm"] = "function_norm"
    weight: Real = Field(0.1, ge=0)
    """Multiplier lambda, per squared logit."""
    sampler: Sampler = VAESampler()
    """The distribution Q."""
    samples: int = Field(10, ge=1)
    """Samples m per image of the batch; published: 100 per step at batches of 10."""
    statistics: Literal["batch", "split", "contaminated"] = "batch"
    """BatchNorm in the pass of the norm; without BatchNorm all are the same. `batch`: the samples are normalised by the
    statistics of the training images of the batch, which carry gradients, so that the norm is as invariant to the scale of the
    weights as the loss. (With the running statistics, as constants, it would not be: the norm shrinks weights that nothing holds,
    and the training diverges; that is refused.) `split`: normalised by the samples. `contaminated`: as `split`, but the running
    statistics are updated, and end up 53% generated (momentum 0.1): kept only to reproduce the published effect, and
    the one exception to the rule that penalties leave them unchanged."""

    _source: Source | None = PrivateAttr(None)

    def prepare(self, model: nn.Module, split: Split, seed: int) -> "FunctionNorm":
        prepared = self.model_copy()
        prepared._source = self.sampler.prepare(split, seed)
        return prepared

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "batch *image"], y: Tensor, keys: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, ""]:
        if self._source is None:
            raise UserError("function_norm: its sampler has no training images; call prepare(model, split, seed) first")
        generated = self._source(keys_or_count(keys, x), self.samples).to(x)
        if self.statistics == "batch" and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
            with on_first(model, len(x)):
                logits = model(torch.cat([x, generated]))[len(x) :]
        else:
            with MODES[self.statistics](model):
                logits = model(generated)
        result: Tensor = self.weight * logits.square().sum(1).mean()
        return result
