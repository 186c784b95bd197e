"""Traced operations that rearrange values or are linear, as layers: derived by running them on numbered values or on a basis."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from robustbench_rkhs.layers.traced_maps import Along, Pick
from robustbench_rkhs.lipschitz.bounds import Uncertifiable
from robustbench_rkhs.nodes.reasons import reason

DENSE = 2**22
"""Most entries of the matrix of a linear operation that is run on a basis."""
_NAMES = (
    "transpose permute movedim moveaxis swapaxes swapdims flip roll rot90 unsqueeze squeeze unflatten narrow select index_select "
    "tile repeat_interleave clone reshape flatten"
)
MOVES: frozenset[Any] = frozenset(
    {
        operator.getitem,
        getattr,
        "view",
        "expand",
        "repeat",
        "contiguous",
        "view_as",
        "reshape_as",
        torch.channel_shuffle,
        *_NAMES.split(),
        *(getattr(torch, name) for name in _NAMES.split()),
    }
)
"""Operations that return values of the image in another order."""
TRANSPOSED = ("T", "mT")
"""Attributes of tensors that do."""
SPLITS: frozenset[Any] = frozenset(
    {torch.chunk, torch.split, torch.unbind, torch.tensor_split, "chunk", "split", "unbind", "tensor_split"}
)
"""Operations that return several parts of the image."""
STACKS: frozenset[Any] = frozenset({torch.stack})
MATMUL: frozenset[Any] = frozenset({torch.matmul, operator.matmul, torch.mm, "matmul", "mm", "__matmul__"})
LINEAR: frozenset[Any] = frozenset({torch.einsum, torch.cumsum, "cumsum", functional.unfold, functional.fold})
"""Operations that are linear in the image while all else is constant."""

Shape = tuple[int, ...]


def called(target: Any, args: Sequence[Any], keywords: Any) -> Any:
    """The value of an operation."""
    return getattr(args[0], target)(*args[1:], **keywords) if isinstance(target, str) else target(*args, **keywords)


def in_place_of(image: fx.Node, args: Any) -> Callable[[Tensor], Any]:
    """The arguments of an operation, with a tensor in the place of the image."""
    return lambda x: _put(image, args, x)


def _put(image: fx.Node, value: Any, x: Tensor) -> Any:
    if value is image:
        return x
    if isinstance(value, (tuple, list)):
        return type(value)(_put(image, one, x) for one in value)
    if isinstance(value, slice):
        return slice(*(_put(image, one, x) for one in (value.start, value.stop, value.step)))
    return value


def keeps_batch(target: Any, args: Sequence[Any], keywords: Any, dims: int) -> None:
    """Raises Uncertifiable where an operation rolls images past each other, which two images rolled twice do not show."""
    if target not in (torch.roll, "roll"):
        return
    found = args[2] if len(args) > 2 else keywords.get("dims")
    over = (found,) if isinstance(found, int) else found
    if not over or any(not isinstance(dim, int) or dim % dims == 0 for dim in over):
        raise Uncertifiable("it rolls the batch, mixing images")


def rearranged(shapes: Sequence[Shape], run: Callable[[list[Tensor]], Tensor]) -> list[nn.Module]:
    """The layers on the values of images of these shapes, flattened one after the other, that give what `run` gives.

    It is run on two images of numbers; each image must keep its own. Raises UserError where it does more than rearrange.
    """
    sizes = [torch.Size(shape).numel() for shape in shapes]
    total, start, numbered = sum(sizes), 0, []
    for shape, size in zip(shapes, sizes, strict=True):
        rows = torch.arange(2, dtype=torch.float64)[:, None] * total + torch.arange(start, start + size, dtype=torch.float64)
        numbered.append(rows.view(2, *shape))
        start += size
    try:
        found = run(numbered)
    except (RuntimeError, TypeError, ValueError, IndexError) as refused:
        raise Uncertifiable(f"no rule for these options: {reason(refused)}") from None
    apart = found.dim() > 1 and len(found) == 2 and bool((found[1] - found[0] == total).all()) and bool((found[0] < total).all())
    if not apart:
        raise Uncertifiable(f"no rule for a result of shape {tuple(found.shape)} that is not one entry for each image")
    index, after = found[0].flatten().long(), tuple(found.shape[1:])
    if torch.equal(index, torch.arange(total)) and len(shapes) == 1:
        if after == tuple(shapes[0]):
            return []
        if len(after) == 1:
            return [nn.Flatten()]
    return [Pick(index, after, tuple(shapes[0]) if len(shapes) == 1 else (total,))]


def dense(before: Shape, run: Callable[[Tensor], Tensor]) -> list[nn.Module]:
    """A linear operation as its matrix, from its values on a basis."""
    size = torch.Size(before).numel()
    try:
        found = run(torch.eye(size, dtype=torch.float64).view(size, *before)) if size**2 <= DENSE else None
    except (RuntimeError, TypeError, ValueError) as refused:
        raise Uncertifiable(f"no rule for these options: {reason(refused)}") from None
    if found is None or found.numel() > DENSE:
        raise Uncertifiable(f"no rule for a linear operation on images of {before}, whose matrix is too large")
    if found.dim() < 2 or len(found) != size:
        raise Uncertifiable(f"no rule for a result of shape {tuple(found.shape)} that is not one entry for each image")
    layers: list[nn.Module] = [] if len(before) == 1 else [nn.Flatten()]
    layers.append(Along(0, found.flatten(1).T.contiguous()))
    after = tuple(found.shape[1:])
    return layers if len(after) == 1 else [*layers, Pick(torch.arange(found[0].numel()), after, (found[0].numel(),))]


def product(before: Shape, weight: Tensor, left: bool) -> list[nn.Module]:
    """x @ W (left) or W @ x, with a constant matrix."""
    if not isinstance(weight, Tensor) or weight.dim() != 2 or len(before) < (1 if left else 2):
        raise Uncertifiable("no rule for a product of the image with anything but a constant matrix")
    matrix = weight.detach().to("cpu", torch.float64)
    return [Along(len(before) - 1, matrix.T.contiguous()) if left else Along(len(before) - 2, matrix)]


def reduced(before: Shape, dims: Any, keepdim: bool, means: bool) -> list[nn.Module]:
    """The mean, or the sum, over dimensions counted with the batch."""
    given = range(1, len(before) + 1) if dims is None or dims == () else [dims] if isinstance(dims, int) else dims
    found = sorted({dim % (len(before) + 1) for dim in given})
    if dims is None or 0 in found:
        raise Uncertifiable("no rule for a mean or a sum over the batch")
    layers: list[nn.Module] = []
    for dim in found:
        size = before[dim - 1]
        layers.append(Along(dim - 1, torch.full((1, size), 1 / size if means else 1.0, dtype=torch.float64)))
    left = tuple(1 if number + 1 in found else side for number, side in enumerate(before))
    after = left if keepdim else tuple(side for number, side in enumerate(before) if number + 1 not in found)
    if not after:
        raise Uncertifiable("no rule for a result of one number for each image")
    return layers if after == left else [*layers, *rearranged([left], lambda x: x[0].reshape(2, *after))]
