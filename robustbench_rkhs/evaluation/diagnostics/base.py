"""The result of a diagnosis, and the sample of images it runs on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from robustbench_rkhs.attacks.engine import Engine
from robustbench_rkhs.attacks.hidden_logits import Reader
from robustbench_rkhs.attacks.packed_copy import search_copy
from robustbench_rkhs.evaluation.diagnostics.walk import margins, restarts
from robustbench_rkhs.nodes.threat_model import Box, Norm
from robustbench_rkhs.runtime.clock import portions
from robustbench_rkhs.verdicts import Diagnosis

SHARE = 0.05
"""A check that breaks more than this share of the right images, where the attack before it did not, trips. It is the share above
which `verdicts.by_attack` calls an attack masked. Honest digits networks (38 pairs of one and an eps)
showed at most 1 image of 64."""
FEWEST = 2
"""A check needs at least this many images to fail: one near its boundary can go either way."""


@dataclass(frozen=True)
class Scene:
    """The correctly classified images of the sample, and earlier results on them. The model is frozen and in eval mode."""

    model: nn.Module
    x: Float[Tensor, "right *image"]
    y: Int[Tensor, " right"]
    keys: Int[Tensor, " right"]
    clean: Float[Tensor, "right classes"]
    """Their logits."""
    norm: Norm
    box: Box
    eps: float
    seed: int
    found: Mapping[str, Float[Tensor, " right"]]
    """By method, the distance of the nearest adversarial image; inf where none."""
    closed: Bool[Tensor, " right"]
    """Certified at eps: not attacked."""
    sampled: int
    """Number of images in the sample, right or wrong: costs are averaged over these."""
    twin: nn.Module | None = None

    def engine(self, rows: Int[Tensor, " some"] | None = None, eps: float | None = None, through: bool = True) -> Engine:
        """An engine on these images (default: all); `through`: minimise the logits behind the output. Cost: a forward pass."""
        rows = self.every if rows is None else rows
        budget = torch.full((len(rows),), self.eps if eps is None else eps, dtype=torch.float64, device=self.x.device)
        x, y, keys = self.x[rows], self.y[rows], self.keys[rows]
        told = {
            "norm": self.norm,
            "box": self.box,
            "seed": self.seed,
            "through": through,
            "packed": self.packed if through else None,
        }
        return Engine(self.model, x, y, keys, eps=budget, **told)  # type: ignore[arg-type]

    @cached_property
    def packed(self) -> nn.Module | None:
        """The model's copy in float32, which the searches ask: checks compare small differences."""
        return search_copy(self.model, self.x, half=False)

    @property
    def every(self) -> Int[Tensor, " right"]:
        return torch.arange(len(self.x), device=self.x.device)

    @property
    def diameter(self) -> float:
        """The largest distance in the norm between two images of the box; without one, of the pixels' range."""
        extent = 1.0 if self.box == "unit" or not self.x.numel() else float(self.x.amax() - self.x.amin())
        return extent if self.norm == "linf" else extent * float(self.x[0].numel() if len(self.x) else 1) ** 0.5

    @cached_property
    def left(self) -> Bool[Tensor, " right"]:
        """Neither certified nor broken within eps by any method of the protocol."""
        left = ~self.closed
        for distance in self.found.values():
            left = left & ~(distance <= self.eps)
        return left

    @property
    def ever_broken(self) -> Bool[Tensor, " right"]:
        """Broken by any method of the evaluation, at any distance."""
        broken = torch.zeros(len(self.x), dtype=torch.bool, device=self.x.device)
        for distance in self.found.values():
            broken = broken | distance.isfinite()
        return broken

    @cached_property
    def walked(self) -> Engine:
        """The reference gradient attack on the images left: 40 steps on the margin, then to three classes."""
        engine = self.engine(self.left.nonzero().flatten())
        restarts(engine, steps=40, count=1, targets=3)
        return engine

    @property
    def standing(self) -> Int[Tensor, " some"]:
        """The images that this attack did not break either."""
        return self.left.nonzero().flatten()[~self.walked.broken]

    @cached_property
    def read(self) -> Reader:
        """The model as attacks see it: with the logits behind its output."""
        return Reader(self.model)

    @cached_property
    def margins(self) -> Float[Tensor, " right"]:
        """The margin of each image's logits behind the output, which attacks minimise. Cost: a forward pass."""
        return margins(logits_of(lambda images: self.read(images).logits, self.x), self.y)

    @cached_property
    def slopes(self) -> Float[Tensor, "right *image"]:
        """Its gradient at each image, as the model gives it, NaN included. Cost: a forward and a backward pass."""
        return gradients(lambda images: self.read(images).logits, self.x, self.y)

    def passes(self, *engines: Engine) -> float:
        """The passes of these engines, averaged over the images of the sample."""
        spent = sum(int(engine.forwards.sum() + engine.backwards.sum()) for engine in engines)
        return spent / max(self.sampled, 1)

    def broken_more(self, name: str, count: int, words: str, cost: float) -> Diagnosis:
        """A diagnosis by the number of images that the reference attack missed."""
        share = count / max(len(self.x), 1)
        tripped = share > SHARE and count >= FEWEST
        return Diagnosis(name, tripped, share, SHARE, words, cost)

    def share(self, name: str, which: Bool[Tensor, " right"], threshold: float, words: str, cost: float) -> Diagnosis:
        """A diagnosis by the share of correct images that show a problem."""
        count, value = int(which.sum()), float(which.double().mean()) if len(which) else 0.0
        return Diagnosis(name, value > threshold and count >= FEWEST, value, threshold, words, cost)


@torch.no_grad()
def logits_of(
    model: Callable[[Tensor], Tensor], x: Float[Tensor, "some *image"], batch: int = 256
) -> Float[Tensor, "some classes"]:
    """The model's logits, in batches that the clock allows."""
    return torch.cat([model(x[some]) for some in portions(len(x), batch)] or [model(x)])


def gradients(
    model: Callable[[Tensor], Tensor], x: Float[Tensor, "some *image"], y: Int[Tensor, " some"], batch: int = 256
) -> Tensor:
    """d margin / d image, untouched: 0 where the model ignores its input or cannot be differentiated."""
    parts = [torch.zeros_like(x[:0])]
    for some in portions(len(x), batch):
        leaf = x[some].detach().requires_grad_()
        with torch.enable_grad():
            value = margins(model(leaf), y[some]).sum()
            found = torch.autograd.grad(value, leaf, allow_unused=True)[0] if value.requires_grad else None
        parts.append(torch.zeros_like(leaf) if found is None else found)
    return torch.cat(parts).detach()
