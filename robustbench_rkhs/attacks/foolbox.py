"""Minimal-norm attacks of the library foolbox: one run answers every eps."""

import logging
import warnings
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from robustbench_rkhs.attacks.ball import per_image
from robustbench_rkhs.attacks.base import Attack, Attacked, unstarted
from robustbench_rkhs.attacks.hopskip import hop_skip_jump
from robustbench_rkhs.attacks.library_model import Counted, confined_randomness, counting, gain, searched
from robustbench_rkhs.attacks.objective import margin
from robustbench_rkhs.nodes.node import Real, UserError
from robustbench_rkhs.nodes.threat_model import Box
from robustbench_rkhs.runtime.clock import OutOfTime
from robustbench_rkhs.runtime.counter_rng import mix
from robustbench_rkhs.runtime.extras import require

Method = Literal["deepfool", "ddn", "fmn", "cw", "brendel_bethge", "hop_skip_jump"]

CLASSES = {
    ("deepfool", "l2"): "L2DeepFoolAttack",
    ("deepfool", "linf"): "LinfDeepFoolAttack",
    ("ddn", "l2"): "DDNAttack",
    ("fmn", "l2"): "L2FMNAttack",
    ("fmn", "linf"): "LInfFMNAttack",
    ("cw", "l2"): "L2CarliniWagnerAttack",
    ("brendel_bethge", "l2"): "L2BrendelBethgeAttack",
    ("brendel_bethge", "linf"): "LinfinityBrendelBethgeAttack",
    ("hop_skip_jump", "l2"): "HopSkipJumpAttack",
    ("hop_skip_jump", "linf"): "HopSkipJumpAttack",
}
"""The attacks of foolbox, by method and norm."""
STEPS = {"deepfool": 50, "ddn": 100, "fmn": 100, "cw": 1000, "brendel_bethge": 200, "hop_skip_jump": 10}
"""Default steps: the library's, except cw (there 10,000), brendel_bethge (there 1,000) and hop_skip_jump (there 64)."""
REGION = 0.05
"""First trust region of brendel_bethge, as a share of the box's diagonal."""


class FoolboxAttack(Attack):
    r"""The nearest adversarial image that a minimal-norm attack of foolbox 3.3.4 finds.

    .. math:: \min_{x'} \lVert x' - x \rVert \quad \text{such that} \quad \arg\max_k f_k(x') \ne y

    deepfool (l2, linf): steps across the linearised boundary. ddn (l2): normalised cross-entropy steps, the radius shrinks
    inside, grows outside. fmn (l2, linf): the same idea on the margin; the library's l2 version never projects, so its
    distances are only as fine as its steps: weak, set `step_size`. cw (l2): Adam on distance plus a multiple of the margin, which
    is searched. brendel_bethge (l2, linf): walks along the boundary from a far adversarial image (a corner of the box, another
    image of the block, or noise), on the CPU; where none is found, the image is returned unchanged. The first run compiles for a
    minute; needs numba: the extra [brendel_bethge].
    hop_skip_jump (l2, linf; black box): sees only the predicted class; from the same starts, it walks along the boundary in
    directions estimated by sampling decisions. Only for box `unit`, and for deterministic models.
    Only images classified correctly are attacked. Random numbers depend on (seed, keys of the block).
    Box `none`: the library needs bounds, and gets three times the images' range (at least 1) on either side.
    Cost: forward and backward passes per image: ddn, fmn, brendel_bethge one per step; deepfool up to 9 per step, few steps;
    cw up to nine searches of `steps`; hop_skip_jump about 67 steps^1.5 (steps 10: 2,200; 64: 34,000) and 10 to 20 per step forward
    passes, and one backward pass, for its start.
    Raises UserError for a norm in which foolbox has no such attack, a step size that it would ignore, and images outside the box.
    Source: Rauber et al., JOSS 2020; Moosavi-Dezfooli et al., CVPR 2016; Rony et al., CVPR 2019; Pintor et al., NeurIPS 2021;
    Carlini & Wagner, S&P 2017; Brendel et al., NeurIPS 2019; Chen et al., S&P 2020.
    """

    minimal_norm: ClassVar[bool] = True

    name: Literal["foolbox"] = "foolbox"
    attack: Method = "ddn"
    """The library's attack."""
    steps: int | None = Field(None, ge=1)
    """Steps; default: deepfool 50, ddn and fmn 100, cw 1000, brendel_bethge 200, hop_skip_jump 10."""
    step_size: Real | None = Field(None, gt=0)
    """First step of fmn (in pixels, the library's default is 1) or of cw (of Adam, as a share of the box, 0.01); for no other."""
    rescale: bool = True
    """Multiply each image's logits by the positive constant that puts its clean margin at 10. No prediction changes, and
    confident or flat logits no longer mask the gradients of ddn and cw. False: the library's own behaviour."""

    @property
    def scale_invariant(self) -> bool:
        return self.rescale or self.attack in ("deepfool", "fmn", "brendel_bethge", "hop_skip_jump")

    @property
    def label(self) -> str:
        return f"{self.name}:{self.attack}"

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *image"],
        y: Int[Tensor, " batch"],
        keys: Int[Tensor, " batch"],
    ) -> Attacked:
        if (self.attack, self.norm) not in CLASSES:
            there = ", ".join(f"{method} {norm}" for method, norm in CLASSES)
            raise UserError(f"foolbox has no {self.attack} in {self.norm}; it has {there}")
        if self.step_size is not None and self.attack not in ("fmn", "cw"):
            raise UserError(f"{self.label} has no step_size, found {self.step_size}; fmn and cw have one")
        if self.attack == "brendel_bethge":
            require("numba", "brendel_bethge", self.label)
        if self.attack == "hop_skip_jump" and self.box != "unit":
            raise UserError(f"{self.label} clips to [0, 1]: it expects box 'unit', found {self.box!r}")
        if self.box == "unit" and len(x) and (x.amin() < 0 or x.amax() > 1):
            raise UserError(f"box 'unit' expects images in [0, 1], found {x.amin():.4g} to {x.amax():.4g}")
        images = x.clone()
        with counting(model, x) as counted, confined_randomness(mix(self.seed, *keys.tolist())):

            def search(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
                found = self._run(counted, x.float(), y).to(x)
                return found, ~counted.standing(found, y) & found.flatten(1).isfinite().all(1)

            try:
                right = counted.standing(x, y)
            except OutOfTime:
                return unstarted(x)
            done = searched(counted, x[right], y[right], self.norm, None, search)
            images[right], claimed = torch.where(per_image(done.fell, done.images), done.images, x[right]), ~right
            claimed[right] = done.fell
            return Attacked(images, *counted.spent(right), claimed, done.finished)

    def _run(self, counted: Counted, x: Tensor, y: Tensor) -> Tensor:
        """The images that the library returns, adversarial or not."""
        with warnings.catch_warnings(), quiet():
            warnings.simplefilter("ignore")
            import foolbox  # imported here: it takes a second

            low, high = bounds_of(x, self.box)
            if self.rescale and self.attack != "hop_skip_jump":  # hop_skip_jump does not see logits
                with torch.no_grad():
                    counted.gain = gain(counted(x), y)
            starts, begun = {}, torch.ones_like(y, dtype=torch.bool)
            if self.attack in ("brendel_bethge", "hop_skip_jump"):
                points, begun = _starts(counted, x, y, low, high)
                starts = {"starting_points": points[begun]}
                counted.gain = None if counted.gain is None else counted.gain[begun]
            found = x.clone()
            if begun.any():
                net = foolbox.models.pytorch.PyTorchModel(counted, bounds=(low, high), device=x.device)
                if self.attack == "hop_skip_jump":
                    steps = self.steps or STEPS[self.attack]
                    found[begun] = hop_skip_jump(net, x[begun], y[begun], points[begun], self.norm, steps)
                    return found
                attack = getattr(foolbox.attacks, CLASSES[self.attack, self.norm])(**self._settings(x[begun], high - low))
                found[begun] = attack.run(net, x[begun], foolbox.criteria.Misclassification(y[begun]), **starts).to(x)
            return found

    def _settings(self, x: Tensor, width: float) -> dict[str, Any]:
        settings: dict[str, Any] = {"steps": self.steps or STEPS[self.attack]}
        if self.attack == "fmn" and self.step_size:
            settings["max_stepsize"] = self.step_size
        elif self.attack == "cw":
            settings["stepsize"] = (self.step_size or 0.01) / width  # tanh maps any box to [-1, 1]
        elif self.attack == "brendel_bethge":
            # the library multiplies its trust region by images * pixels * width: make it a share of the box's diagonal
            settings["lr"] = REGION / (len(x) * x[0].numel() ** 0.5)
        return settings


def bounds_of(x: Tensor, box: Box) -> tuple[float, float]:
    """The bounds passed to foolbox: the box, or far around the images where there is none."""
    if box == "unit":
        return 0.0, 1.0
    low, high = x.amin().item(), x.amax().item()
    room = 3 * max(high - low, 1.0)
    return low - room, high + room


def _starts(
    counted: Counted,
    x: Float[Tensor, "batch *image"],
    y: Int[Tensor, " batch"],
    low: float,
    high: float,
    tries: int = 20,
) -> tuple[Float[Tensor, "batch *image"], Bool[Tensor, " batch"]]:
    """A starting adversarial image for each image, and a mask of where one was found.

    Tried in turn: the corner of the box that lowers the margin most to first order, the block's other images, uniform noise.
    """
    starts, begun = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for attempt in range(1 + 2 * tries):
        if begun.all():
            break
        if attempt == 0:
            leaf = x.clone().requires_grad_()
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(margin(counted(leaf), y).sum(), leaf)
            candidates = torch.where(slope < 0, high, torch.where(slope > 0, low, x))
        elif attempt <= min(tries, len(x) - 1):
            candidates = x.roll(attempt, 0)
        else:
            candidates = torch.rand(x.shape).to(x) * (high - low) + low
        with torch.no_grad():
            fresh = (counted(candidates).argmax(1) != y) & ~begun
        starts = torch.where(per_image(fresh, x), candidates, starts)
        begun = begun | fresh
    return starts, begun


class quiet:
    """Silence foolbox, which logs to the root logger."""

    def __enter__(self) -> None:
        self.before = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *error: object) -> None:
        logging.disable(self.before)
