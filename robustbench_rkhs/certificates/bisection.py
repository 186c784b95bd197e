"""The largest radius that bounds over a ball prove: those asked for in turn, then halving."""

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from robustbench_rkhs.bounds import opened
from robustbench_rkhs.certificates.base import Certified
from robustbench_rkhs.lipschitz import Uncertifiable
from robustbench_rkhs.lipschitz.bounds import weights
from robustbench_rkhs.lipschitz.guard import every
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import reason
from robustbench_rkhs.nodes.threat_model import Box, Norm
from robustbench_rkhs.relaxations import ball
from robustbench_rkhs.relaxations.full import NUMBERS, Found, affine, kinked, proved_trace, widest
from robustbench_rkhs.relaxations.interval import Trace
from robustbench_rkhs.relaxations.region import Region
from robustbench_rkhs.relaxations.rounding import LEAST, UNIT
from robustbench_rkhs.runtime.modes import advice

LARGEST = 1e4
"""No larger radius is looked for, in pixels of [0, 1]."""
TRIES = 60
"""Balls tried for one image at most."""
IMAGES = 64
"""Balls bounded at once."""

Proof = Callable[[Trace, Tensor], Found]


def twin(model: nn.Module, device: torch.device) -> nn.Module:
    """A private float64 copy in eval mode, every layer of which runs the code its rule is for. Raises Uncertifiable."""
    for path, layer in every(model):
        if layer.training and isinstance(layer, nn.modules.dropout._DropoutNd | nn.modules.batchnorm._BatchNorm):
            raise Uncertifiable(f"layer {path!r} ({type(layer).__name__}) is in training mode: {advice(layer)}")
        for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
            if tensor.is_floating_point():
                weights(tensor, f"{name} of layer {path!r} ({type(layer).__name__})")
    return copy.deepcopy(model).eval().requires_grad_(False).to(device, torch.float64)


def largest(
    label: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    epsilons: Sequence[float],
    norm: Norm,
    box: Box,
    linear: bool,
    proof: Proof,
    search: bool,
    tolerance: float,
    neurons: int | None = None,
) -> Certified:
    """For each image the largest radius found at which `proof` has every margin above zero."""
    if x.dim() < 2 or y.shape != x.shape[:1] or y.is_floating_point():
        raise UserError(f"certificate {label!r}: expected one integer label an image, found {tuple(x.shape)} and {tuple(y.shape)}")
    device = x.device if x.device.type == "cuda" else torch.device("cpu")
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        images, labels = x.detach().to(device, torch.float64).clone(), y.detach().to(device, torch.int64).clone()
        finite = images.flatten(1).isfinite().all(1)
        images[~finite] = 0.0
        try:
            double = twin(opened(model, tuple(x.shape[1:])), device)
            found = _search(double, images, labels, epsilons, norm, box, linear, proof, search, tolerance, label, neurons)
        except Uncertifiable:
            raise
        except UserError as refused:
            if str(refused).startswith("certificate "):
                raise
            raise Uncertifiable(str(refused)) from None
        radius = torch.where(finite, found, 0.0).cpu()
    return Certified(radius, ["" if fine else "error" for fine in finite.tolist()], torch.zeros_like(radius))


def _search(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    epsilons: Sequence[float],
    norm: Norm,
    box: Box,
    linear: bool,
    proof: Proof,
    search: bool,
    tolerance: float,
    label: str,
    neurons: int | None,
) -> Tensor:
    try:
        classes = model(x[:1] if len(x) else x.new_zeros(1, *x.shape[1:])).shape[1]
    except RuntimeError as refused:
        raise Uncertifiable(f"the model does not take images of shape {tuple(x.shape[1:])}: {reason(refused)}") from None
    if classes < 2:
        raise UserError(f"certificate {label!r}: expected a logit for each of two classes or more, found {classes}")
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise UserError(f"certificate {label!r}: labels {int(y.min())}..{int(y.max())} do not fit the model's {classes} classes")

    sample = proved_trace(model, _ball(x.new_zeros(1, *x.shape[1:]), x.new_zeros(1), norm, box), False)
    if neurons is not None and kinked(sample) > neurons:  # each costs backward passes of its own
        raise Uncertifiable(
            f"{kinked(sample):,} values go into kinks, expected at most {neurons:,}: raise `neurons` to wait for it"
        )
    images = min(IMAGES, max(1, NUMBERS // (classes * widest(sample.steps))))

    def proves(which: Tensor, eps: Tensor) -> Tensor:
        """The radius proved of these images by bounds over balls of these radii."""
        proved = []
        if not len(which):
            return eps.clone()
        for part, radii in zip(which.split(images), eps.split(images), strict=True):
            trace = proved_trace(model, _ball(x[part], radii, norm, box), linear)
            margins, shares = proof(trace, y[part])
            others = margins.scatter(1, y[part][:, None], torch.inf).amin(1)
            share = shares.amin(1)
            reach = share * radii * (1 - 8 * UNIT)
            if norm == "linf" and box == "unit":
                reach = torch.zeros_like(reach)  # what was cut off does not shrink in proportion
            if not affine(trace):
                reach = torch.minimum(reach, radii)  # the lines hold in this ball only
            proved.append(torch.where(others > 0, torch.maximum(radii, reach), reach).nan_to_num(nan=0.0, posinf=torch.inf))
        return torch.cat(proved)

    everyone = torch.arange(len(x), device=x.device)
    best = x.new_zeros(len(x))
    right = proves(everyone, x.new_zeros(len(x)) + 1e-9)
    open_ = everyone[right > 0]
    best[open_] = right[open_] if search else 0.0
    asked = sorted({float(eps) for eps in epsilons if 0 < eps < float("inf")})
    failed = x.new_full((len(x),), torch.inf)
    for eps in asked:  # where a ball was not proved, no larger one is tried
        going = open_[failed[open_].isinf() & (best[open_] < eps)]
        if len(going):
            radii = best.new_full((len(going),), eps)
            reached = proves(going, radii)
            best[going] = torch.maximum(best[going], reached)
            failed[going] = torch.where(reached < radii, radii, torch.inf)
    if not search:
        return best
    for _ in range(TRIES):
        failed = failed.masked_fill(failed <= best, torch.inf)
        going = open_[(best[open_] < LARGEST) & (failed[open_] > best[open_] * (1 + tolerance))]
        if not len(going):
            break
        low, high = best[going], failed[going]
        # far apart: by factors; near: halfway
        between = torch.where(high > 4 * low, (low * high).sqrt(), (low + high) / 2)
        middle = torch.where(high.isinf(), (4 * low).clamp_min(1e-3), between)
        reached = proves(going, middle)
        best[going] = torch.maximum(low, reached)
        failed[going] = torch.where(reached < middle, torch.minimum(high, middle), high)
    return best


def _ball(x: Tensor, radii: Tensor, norm: Norm, box: Box) -> Region:
    region = ball(x, radii, norm, box)
    if norm == "linf" and box == "unit":  # its bounds were rounded
        return region._replace(radius=region.radius + 8 * UNIT * (region.center.abs() + region.radius) + LEAST)
    return region
