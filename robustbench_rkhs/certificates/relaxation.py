"""Base of the certificates by relaxations: their fields, and the search for the largest ball that is proved."""

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Float64, Int
from pydantic import Field
from torch import Tensor, nn

from robustbench_rkhs.bounds import margins_of, opened
from robustbench_rkhs.bounds.sketch import Sketch
from robustbench_rkhs.certificates.base import FURTHEST, Certificate, Certified
from robustbench_rkhs.certificates.bisection import largest
from robustbench_rkhs.certificates.float32 import FLOAT32, in_float32
from robustbench_rkhs.certificates.float32_slack import Errors, Said, errors_of
from robustbench_rkhs.lipschitz import Uncertifiable
from robustbench_rkhs.lipschitz.bounds import weights
from robustbench_rkhs.lipschitz.guard import every
from robustbench_rkhs.nodes.node import Real, UserError
from robustbench_rkhs.nodes.reasons import reason
from robustbench_rkhs.nodes.threat_model import Box, Norm
from robustbench_rkhs.relaxations import ball
from robustbench_rkhs.relaxations.full_crown import BENDS, KINKS, NUMBERS, Found, kinked, proved_trace, widest
from robustbench_rkhs.relaxations.interval import Trace
from robustbench_rkhs.relaxations.region import Region
from robustbench_rkhs.relaxations.rounding import LEAST, UNIT
from robustbench_rkhs.runtime.clock import GRAIN, OutOfTime, ask, portions
from robustbench_rkhs.runtime.heartbeat import gauge
from robustbench_rkhs.runtime.modes import advice

IMAGES = 64
"""Balls per batch."""


class RelaxationCertificate(Certificate):
    """The largest ball over which bounds keep the label's logit above every other; subclasses define the bounds in `proof`."""

    norms: ClassVar[frozenset[str]] = frozenset({"l2", "linf"})
    image_by_image: ClassVar[bool] = True
    linear: ClassVar[bool] = False
    """True: values at kinks are bounded by linear bounds back to the image, at a cost per value; False: by intervals."""

    norm: Norm = "l2"
    """Norm of the radius."""
    box: Box = "none"
    """`none`: certify the whole ball; `unit`: certify the ball intersected with [0, 1], for images in that box only. An
    evaluation sets it to the box of its attacks, where it was not given."""
    search: bool = True
    """Search for the largest radius; else only for the largest of the requested epsilons."""
    tolerance: Real = Field(1e-2, gt=0)
    """Relative gap at which the search stops."""
    network: Literal["real", "evaluated"] = "real"
    """The arithmetic of the claim: real numbers; or `evaluated`, which is float32 as this CPU computes it where the model runs in
    it and its rounding is bounded by 1% of an image's margin at most, or seen in its logits, else real numbers."""
    step: Real | None = Field(None, gt=0)
    """With it, the search stops at this gap, too, and at the largest of the requested epsilons."""

    def proof(self, found: Trace, y: Int[Tensor, " batch"]) -> Found:
        """The proved bounds of each image's margins over its region."""
        raise TypeError(f"{type(self).__name__} is not a certificate by itself")

    def refusal(self, model: Sketch) -> str:
        return model.refusal

    def balls(self, model: nn.Module, twin: nn.Module, x: Tensor, y: Tensor, epsilons: Sequence[float]) -> "Balls":
        """The proofs over balls around these images. `twin`: the model's float64 copy."""
        return Balls(self, twin, x, y)

    def admit(self, sample: Trace) -> None:
        """Raises Uncertifiable for a network that is too expensive."""

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *image"],
        y: Int[Tensor, " batch"],
        keys: Int[Tensor, " batch"],
        epsilons: Sequence[float] = (),
    ) -> Certified:
        """The largest radius found per image at which every margin is proved above zero, within the time of the clock."""
        if x.dim() < 2 or y.shape != x.shape[:1] or y.is_floating_point():
            found = f"{tuple(x.shape)} and {tuple(y.shape)}"
            raise UserError(f"certificate {self.label!r}: expected one integer label per image, found {found}")
        device = x.device if x.device.type == "cuda" else torch.device("cpu")
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
            images, labels = x.detach().to(device, torch.float64).clone(), y.detach().to(device, torch.int64).clone()
            finite = images.flatten(1).isfinite().all(1)
            images[~finite] = 0.0
            proved, cut = images.new_zeros(len(images)), torch.ones_like(finite)
            held = ["real"] * len(images)
            try:
                plain = margins_of(opened(model, tuple(x.shape[1:])))
                proves, note = self.balls(plain, twin(plain, device), images, labels, epsilons), gauge()
                if self.network == "evaluated" and in_float32(x):
                    proves.errors = errors_of(
                        model, images, Said(proves.model(images), labels), self.norm, max(epsilons, default=0.0)
                    )
                    held = [FLOAT32 if one else "real" for one in proves.errors.kept.tolist()] if proves.errors else held
                for some in portions(len(images), max(len(images), 1), GRAIN):  # all at once where no clock runs
                    here = partial(proves.at, some.start)
                    tell = partial(_noted, note, some.start, len(images))
                    proved[some], cut[some] = largest(here, proved[some], epsilons, self.search, self.tolerance, self.step, tell)
            except OutOfTime:  # the others are left as they are
                pass
            except Uncertifiable:
                raise
            except UserError as refused:
                if str(refused).startswith("certificate "):
                    raise
                raise Uncertifiable(str(refused)) from None
            radius = torch.where(finite, proved, 0.0).clamp_max(FURTHEST).cpu()
        reasons = [
            "error" if not fine else "timeout" if late else "" for fine, late in zip(finite.tolist(), cut.tolist(), strict=True)
        ]
        return Certified(radius, reasons, torch.zeros_like(radius), arithmetic=held)


def _noted(note: Callable[[float, str], None], before: int, images: int, settled: int, doing: str) -> None:
    """Note how far a search is: so many settled here, besides those before."""
    note((before + settled) / images, doing)


class LinearCertificate(RelaxationCertificate):
    """Certificates by linear bounds: each value at a kink costs backward passes, so their number is limited."""

    linear: ClassVar[bool] = True

    neurons: int = Field(20_000, ge=1)
    """Networks with more values at kinks are refused, as each costs backward passes."""

    def refusal(self, model: Sketch) -> str:
        bent = sum(math.prod(layer.inputs) for layer in model.layers if isinstance(layer.module, (*KINKS, *BENDS)))
        return model.refusal or self._too_many(bent)

    def admit(self, sample: Trace) -> None:
        if refusal := self._too_many(kinked(sample)):
            raise Uncertifiable(refusal)

    def _too_many(self, bent: int) -> str:
        if bent <= self.neurons:
            return ""
        return f"{bent:,} values at kinks, expected at most {self.neurons:,}: raise `neurons` to certify it all the same, slowly"


class Balls:
    """Balls around images, and the proof of a certificate over them."""

    def __init__(self, method: RelaxationCertificate, model: nn.Module, x: Tensor, y: Tensor) -> None:
        try:
            classes = model(x[:1] if len(x) else x.new_zeros(1, *x.shape[1:])).shape[1]
        except RuntimeError as refused:
            raise Uncertifiable(f"the model does not take images of shape {tuple(x.shape[1:])}: {reason(refused)}") from None
        if classes < 2:
            raise UserError(f"certificate {method.label!r}: expected a logit for each of two classes or more, found {classes}")
        if len(y) and not 0 <= int(y.min()) <= int(y.max()) < classes:
            found = f"{int(y.min())}..{int(y.max())}"
            raise UserError(f"certificate {method.label!r}: labels {found} do not fit the model's {classes} classes")
        self.method, self.model, self.x, self.y, self.classes = method, model, x, y, classes
        self.errors: Errors | None = None
        sample = proved_trace(model, self.around(x.new_zeros(1, *x.shape[1:]), x.new_zeros(1)), False)
        method.admit(sample)
        self.images = min(IMAGES, max(1, NUMBERS // (classes * widest(sample.steps))))

    def at(self, start: int, which: Int[Tensor, " some"], eps: Float64[Tensor, " some"]) -> Float64[Tensor, " some"]:
        """As a call, of images that are counted from `start`."""
        return self(which + start, eps)

    def __call__(self, which: Int[Tensor, " some"], eps: Float64[Tensor, " some"]) -> Float64[Tensor, " some"]:
        """The radius proved for these images by bounds over balls of these radii; NaN where the time ran out."""
        found = torch.full_like(eps, torch.nan)
        if not len(which):
            return found
        for some in torch.arange(len(which), device=which.device).split(self.images):
            try:
                ask()
                found[some] = self.proved(which[some], eps[some])
            except OutOfTime:
                break
        return found

    def proved(self, part: Int[Tensor, " some"], radii: Float64[Tensor, " some"]) -> Float64[Tensor, " some"]:
        """The same, in one batch."""
        margins, shares = self.bounded(part, radii)[1]
        others = margins.scatter(1, self.y[part][:, None], torch.inf).amin(1)
        reach = shares.amin(1) * radii * (1 - 8 * UNIT)
        if self.cut:
            reach = torch.zeros_like(reach)  # a ball cut by the box does not scale in proportion
        reach = torch.minimum(reach, radii)  # lines and errors hold only in this ball, also where no kink bends the lines
        return torch.where(others > 0, torch.maximum(radii, reach), reach).nan_to_num(nan=0.0, posinf=torch.inf)

    def bounded(self, part: Int[Tensor, " some"], radii: Float64[Tensor, " some"]) -> tuple[Trace, Found]:
        """The regions of every layer for these balls, and the bounds of each image's margins."""
        trace = self.less(proved_trace(self.model, self.around(self.x[part], radii), self.method.linear), part, radii)
        return trace, self.method.proof(trace, self.y[part])

    def less(self, found: Trace, part: Int[Tensor, " some"], radii: Float64[Tensor, " some"]) -> Trace:
        """The trace whose margins are less by what float32 errs by, where the claim covers that."""
        return found if self.errors is None else found._replace(slack=self.errors.slack(part, radii))

    @property
    def cut(self) -> bool:
        """Whether the balls are intersected with [0, 1]."""
        return self.method.norm == "linf" and self.method.box == "unit"

    def around(self, x: Tensor, radii: Tensor) -> Region:
        region = ball(x, radii, self.method.norm, self.method.box)
        if self.cut:  # its bounds were rounded
            return region._replace(radius=region.radius + 8 * UNIT * (region.center.abs() + region.radius) + LEAST)
        return region


def twin(model: nn.Module, device: torch.device) -> nn.Module:
    """A private float64 copy in eval mode, checked so that every layer runs the code its rule is for. Raises Uncertifiable."""
    for path, layer in every(model):
        if layer.training and isinstance(layer, nn.modules.dropout._DropoutNd | nn.modules.batchnorm._BatchNorm):
            raise Uncertifiable(f"layer {path!r} ({type(layer).__name__}) is in training mode: {advice(layer)}")
        for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
            if tensor.is_floating_point():
                weights(tensor, f"{name} of layer {path!r} ({type(layer).__name__})")
    return copy.deepcopy(model).eval().requires_grad_(False).to(device, torch.float64)
