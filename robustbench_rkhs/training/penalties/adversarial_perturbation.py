"""Adversarial perturbation penalty: the lower bound ||f||_delta of the RKHS norm, squared."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from robustbench_rkhs.attacks.ball import project, unit
from robustbench_rkhs.nodes.node import Real
from robustbench_rkhs.nodes.threat_model import Box
from robustbench_rkhs.runtime.distributed import owned, world
from robustbench_rkhs.runtime.modes import per_image
from robustbench_rkhs.training.penalties.base import PenaltyNode
from robustbench_rkhs.training.penalties.slopes import slope


class Found(NamedTuple):
    """The best found so far for each class: the change of the logit, the image and the perturbed image."""

    moved: Float[Tensor, " classes"]
    clean: Float[Tensor, "classes *image"]
    perturbed: Float[Tensor, "classes *image"]


class AdversarialPerturbation(PenaltyNode):
    r"""Penalise the largest change of each logit under an l2 perturbation of one image of the batch.

    .. math:: \lambda \sum_k \big( f_k(x_{i_k} + \delta_k) - f_k(x_{i_k}) \big)^2, \qquad
              (i_k, \delta_k) = \arg\max_{i, \lVert \delta \rVert_2 \le \varepsilon} f_k(x_i + \delta) - f_k(x_i)

    `increase` maximises the signed increase, as published; `both` the absolute change, so that a logit that only falls counts
    too (at twice the cost). Each pair of class and image has its own perturbation: `steps` steps of length `step_size` along the
    normalised gradient, from zero, projected into the ball. A logit for which no such perturbation was found counts as
    unchanged, as zero is in the ball. BatchNorm uses its running statistics and dropout is off.
    The value equals that of the published algorithm up to float rounding, with less work: no weight gradients in the search; one
    forward pass at zero for all classes; no graph for the last evaluation; passes of `chunk` images, which reuse memory and never
    hold K n images; only the K maximisers are differentiated with respect to the weights.
    Cost: 1 + K steps forward passes over the batch and K steps to the images backward (the published: 1 + K (steps + 1) and
    K steps with weight gradients), then one forward and backward pass over 2 K images. Memory: a pass of `chunk` images.
    Source: Bietti et al., "A Kernel Perspective for Regularizing Deep Neural Networks", ICML 2019, section 3.
    """

    name: Literal["adversarial_perturbation"] = "adversarial_perturbation"
    eps: Real = Field(1.0, ge=0)
    """Radius of the l2 ball, in pixels of [0, 1]."""
    steps: int = Field(5, ge=1)
    """Gradient steps of the search."""
    step_size: Real | None = Field(None, gt=0)
    """Length of a step, in pixels; default: 1.5 eps / steps."""
    box: Box = "none"
    """`none`: perturbed images may leave [0, 1], as published; `unit`: they may not."""
    direction: Literal["increase", "both"] = "increase"
    """`increase`: logits that rise, as published; `both`: that rise or fall."""
    chunk: int = Field(64, ge=1)
    """Images per pass; the value does not depend on it."""

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "batch *image"], y: Tensor, keys: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, ""]:
        with per_image(model):
            found: Found | None = None
            for images in x.detach().split(self.chunk):
                found = self._search(model, images, found)
            assert found is not None
            classes = len(found.moved)
            logits = model(torch.cat([found.perturbed, found.clean])).float()
        changes = logits[:classes].diagonal() - logits[classes:].diagonal()
        unmoved = found.moved <= 0  # if none was found, the zero perturbation is the best
        squares = torch.where(unmoved, torch.zeros_like(changes), changes).square()
        return self.weight * world() * (squares * owned(found.moved)).sum()

    def _search(self, model: nn.Module, x: Tensor, found: Found | None) -> Found:
        """The best of the previous images and these."""
        x = x.clone().requires_grad_()
        logits = model(x)
        clean, classes = logits.detach().float(), logits.shape[1]
        slopes = [slope(logits[:, k].sum(), x, keep=k + 1 < classes) for k in range(classes)]
        del logits
        x = x.detach()
        if found is None:
            found = Found(clean.new_full((classes,), -torch.inf), *(x[:1].repeat(classes, *[1] * (x.dim() - 1)) for _ in "cp"))
        at_once = max(1, self.chunk // len(x))
        for sign in (1,) if self.direction == "increase" else (1, -1):
            for group in torch.arange(classes, device=x.device).split(at_once):
                gradient = torch.cat([sign * slopes[k] for k in group.tolist()])
                perturbed = self._ascend(model, x, group, sign, gradient)
                with torch.no_grad():
                    after = self._logits(model, perturbed, group, len(x))
                moved, best = (sign * (after - clean[:, group].T)).max(1)
                won = moved > found.moved[group]
                winners = group[won]
                rows = best[won] + len(x) * won.nonzero()[:, 0]
                found.moved[winners] = moved[won]
                found.clean[winners] = x[best[won]]
                found.perturbed[winners] = perturbed[rows]
        return found

    def _ascend(self, model: nn.Module, x: Tensor, group: Tensor, sign: int, gradient: Tensor) -> Tensor:
        """The images moved so that `sign` times each logit of the group rises: one copy of the images per class."""
        base = x.repeat(len(group), *[1] * (x.dim() - 1)) if len(group) > 1 else x
        length = self.step_size or 1.5 * self.eps / self.steps
        perturbed = project(base, base + length * unit(gradient), "l2", self.eps, self.box)
        for _ in range(self.steps - 1):
            perturbed = perturbed.detach().requires_grad_()
            rising = sign * self._logits(model, perturbed, group, len(x)).sum()
            gradient = slope(rising, perturbed)
            perturbed = project(base, perturbed.detach() + length * unit(gradient), "l2", self.eps, self.box)
        return perturbed.detach()

    @staticmethod
    def _logits(model: nn.Module, images: Tensor, group: Tensor, count: int) -> Float[Tensor, "group images"]:
        """Logit k on class k's copy of the images."""
        logits = model(images).float().view(len(group), count, -1)
        result: Tensor = logits.gather(2, group[:, None, None].expand(-1, count, 1))[..., 0]
        return result
