"""The logits behind a model's output: saturating, scaled or shifted last operations are looked through.

tanh(50 z), softmax(z / T) or z + 5e6 predict the same class as z, but float32 loses the margin in them. Attacks minimise the margin
of z; what counts as an adversarial example is decided by the output alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

RISING = frozenset(
    "tanh sigmoid special_expit expit softsign atan arctan asinh arcsinh erf special_erf exp expm1 log log1p sqrt softplus "
    "logsigmoid log_sigmoid clamp clip hardtanh hardsigmoid relu relu6 elu selu celu leaky_relu round floor ceil sign sgn "
    "softmax log_softmax _softmax special_softmax special_log_softmax "
    "float double half bfloat16 to type clone contiguous detach_ view reshape flatten squeeze view_as alias".split()
)
"""Operations that keep the order of the classes, if they take the logits first and a softmax is over the classes."""
SHIFTS, SCALES = (
    frozenset("add __add__ __radd__ sub __sub__ subtract".split()),
    frozenset("mul __mul__ __rmul__ multiply div __truediv__ divide true_divide".split()),
)
"""Operations that keep the order where the other operand is one number per image (for SCALES: positive)."""
FIRST = frozenset("sub __sub__ subtract div __truediv__ divide true_divide".split())
"""Those whose first operand must be the logits."""
LOPSIDED = 100.0
"""A last linear layer whose rows or biases share a part this many times larger than they differ by is centred."""


class Made(NamedTuple):
    """How a tensor was made, and its version then: one that was written to later is not looked through."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Tensor
    version: int


class Recorder(TorchFunctionMode):
    """Records how tensors are made by operations that may hide logits."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, Made] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if isinstance(result, Tensor) and (name in RISING or name in SHIFTS or name in SCALES or name == "linear"):
            if not result.is_inference():
                self.made[id(result)] = Made(name, tuple(args), dict(kwargs or {}), result, result._version)
        return result


class Outputs(NamedTuple):
    """What a model returned, and the logits behind it (the same tensor where nothing hides them)."""

    own: Float[Tensor, "some classes"]
    logits: Float[Tensor, "some classes"]


class Reader:
    """Runs a model and looks through its last operations; a model that hides nothing is run as it is.

    Looked through: increasing functions of each logit, softmax and log-softmax, a positive factor and a shift that an image's
    classes share, and what the rows of a last linear layer share, if it dwarfs their differences. The first call decides whether
    there is anything to look through; the operations are then recorded in each pass, whatever the model's control flow. Compiled
    models are opaque. Cost: some microseconds per operation, for a model that hides its logits.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], through: bool = True) -> None:
        self.model = model
        self.hides: bool | None = None if through and not opaque(model) else False
        """Whether something hides the logits; None before the first call, False to take the output as it is."""
        self._centred: dict[int, tuple[Tensor, Tensor, Tensor | None]] = {}

    def __call__(self, images: Float[Tensor, "some *image"]) -> Outputs:
        if self.hides is False:
            own = self.model(images)
            return Outputs(own, own)
        with Recorder() as recorder:
            own = self.model(images)
        logits = self._behind(own, recorder.made) if isinstance(own, Tensor) and own.dim() == 2 else own
        if images.requires_grad and isinstance(own, Tensor) and own.requires_grad and not logits.requires_grad:
            self.hides, logits = False, own  # recorded inside an autograd.Function
        if self.hides is None and len(images):
            self.hides = logits is not own
        return Outputs(own, logits)

    def _behind(self, own: Tensor, made: dict[int, Made]) -> Tensor:
        here = own
        while (step := made.get(id(here))) is not None and step.result is here and here._version == step.version:
            if step.name == "linear":
                here = self._level(step, here)
                break
            before = source(step, own)
            if before is None:
                break
            here = before
        return here if here is own else here.reshape(own.shape)

    def _level(self, step: Made, here: Tensor) -> Tensor:
        """The output of a last linear layer, without what its classes share where that dwarfs their differences."""
        given = dict(zip(("input", "weight", "bias"), step.args, strict=False)) | step.kwargs
        weight, bias = given["weight"], given.get("bias")
        if id(weight) not in self._centred or self._centred[id(weight)][0] is not weight:
            self._centred[id(weight)] = (weight, *levelled(weight, bias))
        _, even, rest = self._centred[id(weight)]
        return here if even is weight else nn.functional.linear(given["input"], even, rest)


def opaque(model: Callable[[Tensor], Tensor]) -> bool:
    """Whether recording could not see into the model, or would make it compile anew."""
    inside = model.modules() if isinstance(model, nn.Module) else [model]
    return any(hasattr(one, "_orig_mod") or hasattr(one, "_torchdynamo_orig_callable") for one in inside)


def source(step: Made, own: Tensor) -> Tensor | None:
    """The tensor of logits that this operation was applied to; None where it may change the order of an image's classes."""
    if step.name in RISING:
        logits = step.args[0] if step.args else None
        if not isinstance(logits, Tensor) or not alike(logits, own) or tensors(step):
            return None
        axis: Any = step.kwargs.get("dim", step.args[1] if len(step.args) > 1 else None)
        if "softmax" in step.name and axis not in (1, 1 - logits.dim()):
            return None
        return logits
    if len(step.args) != 2 or step.kwargs.get("alpha", 1) != 1 or step.kwargs.get("rounding_mode"):
        return None
    first, second = step.args
    for logits, other in ((first, second),) if step.name in FIRST else ((first, second), (second, first)):
        if isinstance(logits, Tensor) and alike(logits, own) and shared(other, step.name in SCALES):
            return logits
    return None


def tensors(step: Made) -> bool:
    """Whether an operation has other tensors than its first operand: a clamp of each class by its own limit keeps no order."""
    return any(isinstance(one, Tensor) for one in [*step.args[1:], *step.kwargs.values()])


def alike(one: Tensor, own: Tensor) -> bool:
    """Whether a tensor has one number for each image and class."""
    return one.dim() >= 2 and one.shape[:2] == own.shape and one.numel() == own.numel() and one.is_floating_point()


def shared(value: Any, positive: bool) -> bool:
    """Whether a number, or a tensor that broadcasts over images and classes, is the same for all classes (and positive)."""
    if isinstance(value, Tensor):
        value = value.detach()
        if value.dim() >= 2 and value.shape[1] > 1:
            level = bool((value == value[:, :1]).all())
        else:
            level = value.dim() >= 2 or bool((value == value.flatten()[:1]).all())
        return level and (not positive or bool((value > 0).all()))
    return isinstance(value, (int, float)) and (not positive or value > 0)


@torch.no_grad()
def levelled(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """A linear layer without what its classes share, if that dwarfs their differences; else the layer's own weights."""
    wide = weight.detach().double()
    middle = wide.mean(0)
    apart = (wide - middle).norm(dim=1).amax()
    offset, uneven = wide.new_zeros(len(wide)), apart.new_zeros(())
    level = offset.new_zeros(())
    if bias is not None:
        level = bias.detach().double().mean()
        offset = bias.detach().double() - level
        uneven = offset.abs().amax()
    if middle.norm() <= LOPSIDED * apart and level.abs() <= LOPSIDED * torch.maximum(apart, uneven):
        return weight, bias
    return (wide - middle).to(weight.dtype), None if bias is None else offset.to(bias.dtype)
