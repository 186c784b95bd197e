"""Base of the certificates that divide logit differences by Lipschitz bounds, which are cached by their inputs' digest."""

import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn
from torch.nn.utils import parametrize

from robustbench_rkhs.bounds import Step, margins_of, opened, reached, steps
from robustbench_rkhs.bounds.sketch import Sketch
from robustbench_rkhs.certificates.base import FURTHEST, Certificate, Certified
from robustbench_rkhs.certificates.float32 import BATCH, FLOAT32, evaluated_error, in_float32
from robustbench_rkhs.certificates.rounding import logits_and_error
from robustbench_rkhs.lipschitz import Uncertifiable
from robustbench_rkhs.lipschitz.guard import every
from robustbench_rkhs.nodes.code_names import is_ours
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.threat_model import Norm
from robustbench_rkhs.runtime.clock import UNKNOWN, OutOfTime, fitting

KEPT = 4
"""Number of models whose bounds are cached between calls."""


class _Known(NamedTuple):
    """A model's float64 chain and the certificate's pair bounds: private copies that are never modified."""

    chain: list[Step]
    bounds: dict[object, Tensor]
    reach: dict[str, float]
    """Lipschitz bounds of what enters each layer (`bounds.reached`), once they were asked for."""


_known: OrderedDict[bytes, _Known] = OrderedDict()
"""Bounds by the digest of all that they depend on."""


class PairwiseCertificate(Certificate):
    """Base class of certificates that divide differences of logits by proven Lipschitz bounds of these differences.

    A subclass has its own `name` and defines the bounds in `pairs`.
    """

    norms: ClassVar[frozenset[str]] = frozenset({"l2", "linf"})

    name: str = ""
    norm: Norm = "l2"
    """Norm of the radius."""
    network: Literal["real", "float32", "evaluated"] = "real"
    """The arithmetic of the claim: real numbers; float32 as this CPU computes it on float32 images; or `evaluated`, which
    is float32 where the model runs in it and its rounding is bounded, else real numbers."""

    @property
    def arithmetic(self) -> str:
        return FLOAT32 if self.network == "float32" else "real"

    def refusal(self, model: Sketch) -> str:
        return model.refusal

    def pairs(self, chain: list[Step], shape: tuple[int, ...], classes: int) -> Float64[Tensor, "classes classes"]:
        """Proven bounds L[y, j] of the Lipschitz constants of f_y - f_j, in logits per unit l2 of input."""
        raise TypeError(f"{type(self).__name__} has no bounds by itself")

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *image"],
        y: Int[Tensor, " batch"],
        keys: Int[Tensor, " batch"],
        epsilons: Sequence[float] = (),
    ) -> Certified:
        method = self
        if self.network == "evaluated":
            method = self.model_copy(update={"network": "float32" if in_float32(x) else "real"})
        try:
            radius, reasons = method._radii(model, x, y, self.norm)
        except OutOfTime:  # an incomplete bound bounds nothing
            radius, reasons = torch.zeros(len(x), dtype=torch.float64), ["timeout"] * len(x)
        except Uncertifiable:
            if self.network != "evaluated" or method.network == "real":
                raise
            return self.model_copy(update={"network": "real"})(model, x, y, keys, epsilons)
        return Certified(radius, reasons, torch.zeros_like(radius), arithmetic=method.arithmetic)

    def radii(
        self, model: nn.Module, x: Float[Tensor, "batch *image"], y: Int[Tensor, " batch"], norm: Norm | None = None
    ) -> Float64[Tensor, " batch"]:
        """The radii alone, in `norm` (default: the certificate's norm)."""
        return self._radii(model, x, y, norm or self.norm)[0]

    def _radii(self, model: nn.Module, x: Tensor, y: Tensor, norm: Norm) -> tuple[Tensor, list[str]]:
        """Radius of each image; `error` where image or logits are not finite, `timeout` where the time ran out.

        Raises OutOfTime if the time runs out before the bounds are computed.
        """
        if norm not in self.norms:
            raise UserError(f"certificate '{self.name}': expected norm l2 or linf, found {norm!r}")
        if x.dim() < 2 or y.shape != x.shape[:1] or y.is_floating_point():
            raise UserError(
                f"certificate '{self.name}': expected one integer label per image, found {tuple(x.shape)} and {tuple(y.shape)}"
            )
        shape = tuple(x.shape[1:])
        y = y.detach().to("cpu", torch.int64)
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
            chain, bounds = self.chain_and_bounds(model, shape)
            if len(y) and not 0 <= int(y.min()) <= int(y.max()) < len(bounds):
                span = f"{int(y.min())}..{int(y.max())}"
                raise UserError(f"certificate '{self.name}': labels {span} do not fit the model's {len(bounds)} classes")
            # a private copy of the images, as a layer may work in place
            images = x.detach().to("cpu", torch.float64)
            logits, error, late = _logits(chain, images.clone(), len(bounds))
            furthest = torch.full_like(error, FURTHEST)
            if self.network == "float32":
                error, bounds, furthest = self._in_float32(model, chain, images, error, bounds)
        finite = images.flatten(1).isfinite().all(1) & logits.isfinite().all(1)
        gaps = logits.gather(1, y[:, None]) - logits - 2 * error[:, None]
        radii = (gaps / bounds[y]).masked_fill(gaps <= 0, 0.0)  # a bound of zero: constant, so as far as any claim goes
        radius = torch.minimum(radii.scatter(1, y[:, None], torch.inf).amin(1) * (1 - 1e-12), furthest)
        if norm == "linf":
            radius = radius / (math.sqrt(math.prod(shape)) * (1 + 1e-12))
        reasons = [
            "timeout" if left else "" if fine else "error" for left, fine in zip(late.tolist(), finite.tolist(), strict=True)
        ]
        return torch.where(finite & ~radius.isnan(), radius, 0.0), reasons

    def _in_float32(
        self, model: nn.Module, chain: list[Step], images: Tensor, error: Tensor, bounds: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Errors and bounds with which the same quotient is a radius of the float32 network: both logits err by e + s r. And the
        radius within which float32 holds all its sums.

        Raises Uncertifiable where that is not bounded.
        """
        more, slope, furthest = evaluated_error(model, chain, images)
        return error + more, bounds + 2 * slope, furthest.clamp(0, FURTHEST)

    def chain_and_bounds(self, model: nn.Module, shape: tuple[int, ...]) -> tuple[list[Step], Tensor]:
        """The float64 chain and the pair bounds, cached by the digest of all that they depend on. Must not be modified."""
        known = _read(model, shape)
        asking = type(self) if is_ours(type(self)) else self  # bounds of a user's own certificate may depend on its fields
        if asking not in known.bounds:
            chain = known.chain
            classes = chain[-1].bound.shape[-1] if chain else shape[-1]
            if classes < 2:
                raise UserError(f"certificate '{self.name}': expected a logit for each of two classes or more, found {classes}")
            known.bounds[asking] = self.pairs(chain, shape, classes)
        return known.chain, known.bounds[asking]


def reach_of(model: nn.Module, shape: tuple[int, ...]) -> dict[str, float]:
    """`bounds.reached` of a model, cached by the digest of all that it depends on. Must not be modified."""
    known = _read(model, shape)
    if not known.reach:
        known.reach.update(reached(known.chain))
    return known.reach


def chain_of(model: nn.Module, shape: tuple[int, ...]) -> list[Step]:
    """The model's float64 chain, cached by the digest of all that it depends on. Must not be modified."""
    return _read(model, shape).chain


def _read(model: nn.Module, shape: tuple[int, ...]) -> _Known:
    """The model's float64 chain and what was computed from it."""
    model = margins_of(opened(model, shape))  # from here on any other module is a chain, and the digest covers all of it
    key = _digest(model, shape)
    known = _known.get(key)
    if known is None:
        known = _Known(steps(model, shape), {}, {})
    if key:
        _known[key] = known
        _known.move_to_end(key)
        if len(_known) > KEPT:
            _known.popitem(last=False)
    return known


def _logits(chain: list[Step], images: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, bounds on their rounding errors, and which images were not reached in time (NaN and infinity)."""
    logits = images.new_full((len(images), classes), torch.nan)
    error, late = images.new_full((len(images),), torch.inf), torch.ones(len(images), dtype=torch.bool)
    start, pace = 0, UNKNOWN
    try:
        while start < len(images):
            some, begun = slice(start, start + min(BATCH, fitting(pace))), time.monotonic()
            logits[some], error[some] = logits_and_error(chain, images[some])
            late[some] = False
            pace = (time.monotonic() - begun) / len(late[some])
            start = some.stop
    except OutOfTime:
        pass
    return logits, error, late


def _digest(model: nn.Module, shape: tuple[int, ...]) -> bytes:
    """SHA-256 of the layers' types, plain attributes (stride, slope, mode ...) and tensors; empty where these do not determine
    the layers.

    Every layer is first checked, at every call, to run the code of the class that its rule is for, which reads nothing else.
    """
    digest = hashlib.sha256(repr(shape).encode())
    try:
        layers = list(every(model))
    except Uncertifiable:
        return b""  # a branch that is not a chain, or missing: `steps` raises the error
    for path, layer in layers:
        if any(parametrize.is_parametrized(part) for part in layer.modules()):
            return b""  # a parametrization may depend on anything
        for inner, part in layer.named_modules(remove_duplicate=False):  # the branches of a block are part of the digest
            plain = {name: value for name, value in vars(part).items() if isinstance(value, _PLAIN)}
            kind = (path, inner, type(part).__module__, type(part).__qualname__, sorted(plain.items()))
            digest.update(repr(kind).encode())
        tensors = [*layer.named_parameters(remove_duplicate=False), *layer.named_buffers(remove_duplicate=False)]
        for name, tensor in tensors:
            values = tensor.detach().cpu().contiguous()
            digest.update(repr((name, values.dtype, tuple(values.shape))).encode())
            digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()


_PLAIN = (bool, int, float, str, tuple, list, type(None))
