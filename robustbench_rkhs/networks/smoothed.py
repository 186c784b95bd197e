"""Smoothed classifiers: the majority vote of a network over Gaussian noise."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import binom
from torch import Tensor, nn

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.clock import ask
from robustbench_rkhs.runtime.counter_rng import mix

BLOCK = 100
"""Samples per random generator: sample number d is the (d mod 100)-th of generator d // 100."""
PASSES = 4096
"""Most noisy images per forward pass (but at least one sample of every image)."""
VOTE, COUNT, PROOF = 1, 2, 3
"""Counters that separate the samples of the vote, the recount and the proof."""


def noise(shape: tuple[int, ...], begin: int, end: int, *counters: int) -> Float[Tensor, "draws *image"]:
    """Standard normal samples number begin .. end-1, each a function of (counters, its number) alone. On the CPU."""
    blocks = []
    for block in range(begin // BLOCK, -(-end // BLOCK)):
        generator = torch.Generator().manual_seed(mix(*counters, block))
        blocks.append(torch.randn((BLOCK, *shape), generator=generator))
    first = begin - begin % BLOCK
    return torch.cat(blocks)[begin - first : end - first] if blocks else torch.zeros(0, *shape)


class Smoothed(nn.Module):
    r"""g(x) = argmax_c P(f(x + sigma z) = c), z standard normal: the vote of `votes` samples, the same for every image.

    .. math:: \text{answer}_c = \log \frac{n_c + 1}{\text{votes} + K}, \qquad
              \nabla\,\text{answer}_c = \nabla \log \frac{1}{\text{votes}} \sum_i \operatorname{softmax}_c f(x + \sigma z_i)

    n_c: samples on which the base predicts c, so that the argmax is the vote; the backward pass uses the gradient of the soft vote.
    Deterministic: a function of x and `seed`, independent of the batch. NaN where the base's logits are not finite.
    The vote estimates g, and attacks adapt to its samples. Adversarial images are therefore re-tested by `recounted`, and, where
    they contradict a certificate, count only if `loses` proves them.
    Cost: `votes` forward passes of the base (and as many backward). Its weights digest covers base and settings.
    Source: Cohen et al., ICML 2019; gradients as in Salman et al., NeurIPS 2019.
    """

    leaves_input: ClassVar[bool] = True
    """Its base gets noisy copies, and may write into them."""

    def __init__(
        self, base: nn.Module, sigma: float, votes: int = 100, recount: int = 1000, seed: int = 0, stream: int = VOTE
    ) -> None:
        super().__init__()
        if isinstance(base, Smoothed):
            raise UserError("the model is smoothed already: smooth its base")
        if not 0 < sigma < float("inf"):
            raise UserError(f"smoothing: expected a positive sigma, found {sigma}")
        for name, value in (("votes", votes), ("recount", recount)):
            if not isinstance(value, int) or value < 1:
                raise UserError(f"smoothing: expected {name} of at least 1, found {value!r}")
        self.base, self.sigma, self.votes, self.recount, self.seed, self.stream = base, sigma, votes, recount, seed, stream

    def forward(self, x: Float[Tensor, "batch *image"]) -> Float[Tensor, "batch classes"]:
        hard: Tensor | None = None
        soft: list[Tensor] = []
        for logits in self._answers(x, self.votes, self.stream):
            cast = votes_of(logits)
            hard = cast if hard is None else hard + cast
            if torch.is_grad_enabled():
                soft.append(logits.log_softmax(2).logsumexp(1))
        assert hard is not None
        answer = torch.log((hard.to(x.dtype) + 1) / (self.votes + hard.shape[1]))
        answer = answer.masked_fill(hard.sum(1, keepdim=True) < self.votes, torch.nan)
        if not soft:
            return answer
        slope = torch.stack(soft).logsumexp(0)
        return answer + (slope - slope.detach())

    def recounted(self) -> "Smoothed":
        """The same classifier, by `recount` samples that no attack on this one has used."""
        fresh = Smoothed(self.base, self.sigma, self.recount, self.recount, self.seed, COUNT)
        return fresh.train(self.training)

    @torch.no_grad()
    def loses(self, x: Float[Tensor, "batch *image"], y: Int[Tensor, " batch"], alpha: float = 0.001) -> Bool[Tensor, " batch"]:
        """Whether the label is proved, at confidence 1 - alpha per image, not to be the majority under infinitely many samples.

        One-sided exact binomial test of each other class against the label on `recount` fresh samples, with alpha divided
        among the classes.
        """
        counts: Tensor = sum(votes_of(logits) for logits in self._answers(x, self.recount, PROOF))  # type: ignore[assignment]
        own = counts.gather(1, y[:, None]).cpu().numpy()
        others = counts.cpu().numpy()
        chance = binom.sf(others - 1, others + own, 0.5)
        chance[np.arange(len(own)), y.cpu().numpy()] = 1
        return torch.as_tensor(chance.min(1) <= alpha / max(others.shape[1] - 1, 1), device=x.device)

    def _answers(self, x: Tensor, draws: int, stream: int) -> Iterator[Float[Tensor, "batch draws classes"]]:
        """The base's logits under the common samples, some samples at a time."""
        step = max(1, PASSES // max(len(x), 1))
        for begin in range(0, draws, step):
            ask()
            part = noise(tuple(x.shape[1:]), begin, min(begin + step, draws), self.seed, stream).to(x)
            yield self.base((x[:, None] + self.sigma * part).flatten(0, 1)).unflatten(0, (len(x), len(part)))

    def get_extra_state(self) -> Tensor:
        """The settings, so that the digest of the weights covers them."""
        return torch.tensor([self.sigma, self.votes, self.recount, self.seed], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Raises UserError where the weights belong to another smoothing."""
        if not torch.equal(state.cpu(), self.get_extra_state()):
            raise UserError(f"weights of a classifier smoothed with {state.tolist()}, expected {self.get_extra_state().tolist()}")

    def extra_repr(self) -> str:
        return f"sigma={self.sigma:g}, votes={self.votes}, recount={self.recount}, seed={self.seed}"


def votes_of(logits: Float[Tensor, "batch draws classes"]) -> Int[Tensor, "batch classes"]:
    """The number of samples per class (ties go to the first); samples with logits that are not finite count for no class."""
    counted = nn.functional.one_hot(logits.argmax(2), logits.shape[2])
    return (counted * logits.isfinite().all(2, keepdim=True)).sum(1)
