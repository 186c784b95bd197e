"""Casts in a forward: one to the model's own type changes nothing, any other rounds the image and is refused."""

from typing import Any

import torch
from torch import Tensor, fx, nn

from robustbench_rkhs.lipschitz.bounds import Uncertifiable

NAMED = {"float": torch.float32, "double": torch.float64, "half": torch.float16, "bfloat16": torch.bfloat16, "int": torch.int32}
NAMED |= {"long": torch.int64, "byte": torch.uint8, "bool": torch.bool, "short": torch.int16}
"""Methods that cast, and their types."""
PLACES = frozenset({"cpu", "cuda"})
"""Methods that move a tensor."""
BITS = {torch.float64: 53, torch.float32: 24}
"""Types of images, and their digits."""


def precision_of(model: nn.Module) -> torch.dtype:
    """The type of a model's images: float64 if its first weight is, else float32."""
    first = next((one for one in [*model.parameters(), *model.buffers()] if one.is_floating_point()), None)
    return torch.float64 if first is not None and first.dtype == torch.float64 else torch.float32


def without_casts(graph: fx.Graph, root: Any, own: torch.dtype) -> bool:
    """Takes casts of the image to `own` or a finer type out of the graph; whether there were any. Raises Uncertifiable for others.

    What they round is the rounding of the model's own type: a proof in real arithmetic does not see it.
    """
    found, images = False, {next(iter(graph.nodes))}
    for node in list(graph.nodes):
        if not images.intersection(node.all_input_nodes):
            continue
        images.add(node)
        if node.op != "call_method" or not (
            node.target in NAMED or node.target in PLACES or node.target in ("to", "type", "type_as")
        ):
            continue
        if node.args[0] not in images:
            continue  # a constant, made like the image
        for kind in _types(node, root, images):
            if kind not in BITS or BITS[kind] < BITS[own]:
                name, type_ = str(own).removeprefix("torch."), str(kind).removeprefix("torch.")
                raise Uncertifiable(f"its forward casts to {type_}, which rounds what it computes in {name}")
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)
        images.discard(node)
        found = True
    return found


def _types(node: fx.Node, root: Any, images: set[fx.Node]) -> list[torch.dtype]:
    """The types that a cast names. A value of the model counts as float32, the coarsest that its weights may have here.

    Raises Uncertifiable for a type that the forward computes.
    """
    if node.target in NAMED:
        return [NAMED[str(node.target)]]
    given = [*node.args[1:], *node.kwargs.values()]
    found = []
    for one in given:
        if isinstance(one, torch.dtype):
            found.append(one)
        elif isinstance(one, str) and one.startswith("torch."):
            found.append(getattr(torch, one.removeprefix("torch.").removesuffix("Tensor").lower() or "float32", torch.int64))
        elif isinstance(one, Tensor):
            found.append(torch.float32 if one.is_floating_point() else one.dtype)
        elif isinstance(one, fx.Node):
            found.append(_type_of(one, root, images))
        elif not isinstance(one, str | bool | torch.device | torch.memory_format | None):
            raise Uncertifiable(f"its forward casts to {one}, which is no type with a rule")
    return found


def _type_of(one: fx.Node, root: Any, images: set[fx.Node]) -> torch.dtype:
    """The type of a value, or that it is."""
    if one in images:
        return torch.float32
    if one.target is getattr and one.args[1] == "dtype" and isinstance(one.args[0], fx.Node):
        return _type_of(one.args[0], root, images)
    if one.op != "get_attr":
        raise Uncertifiable("its forward casts to a type that it computes")
    held = root
    for part in str(one.target).split("."):
        held = getattr(held, part)
    return torch.float32 if held.is_floating_point() else held.dtype
