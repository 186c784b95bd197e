"""Exported programs (torch.export, ONNX) as plain graphs of torch functions that take any number of images."""

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import cause

CLOSE = 1e-4
"""Tolerance between a program and its plain graph in float32, relative to the largest output."""
PYTHON: tuple[Any, ...] = (torch.nn.functional, torch, torch._C._nn)
"""Where the function of an operation is looked for, in this order."""
METHODS = frozenset({"view", "expand", "to", "contiguous", "clone", "size", "type_as"})
"""Operations that are methods of tensors."""
RENAMED = {
    "sym_size": "size",
    "_to_copy": "to",
    "_unsafe_view": "view",
    "alias": "clone",
    "lift_fresh_copy": "clone",
    "detach": "clone",
    "detach_": "clone",
}
ARITHMETIC: dict[str, Any] = {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv}
FUNCTIONS: dict[str, Any] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "dropout": functional.dropout,
    "batch_norm": torch.batch_norm,
    "layer_norm": torch.layer_norm,
    "matmul": torch.matmul,
    "mm": torch.matmul,
}
"""Functions whose arguments stand in the operation's order, where `functional` has another of that name."""
SHAPED = frozenset({"view", "reshape", "expand", torch.reshape})


def is_exported(model: Any) -> bool:
    """Whether this is the module of an exported program, whose operations are those of ATen."""
    return isinstance(model, fx.GraphModule) and any(
        (node.op == "call_module" and str(node.target) == "_guards_fn") or isinstance(node.target, torch._ops.OpOverload)
        for node in model.graph.nodes
    )


def plain_program(program: Any) -> fx.GraphModule:
    """The graph of an exported program on functions of torch, in eval mode, for any number of images. Raises UserError.

    A batch size that was baked in at the export is replaced by that of the images. Program and graph are compared on random
    images, three batches of them. Guards on the input's shape are dropped: another shape fails in the operations themselves.
    """
    images = [node for node in program.graph.nodes if node.op == "placeholder"]
    if len(images) != 1:
        raise UserError(f"the exported program takes {len(images)} inputs, expected one: the images")
    like = images[0].meta.get("val")
    if not isinstance(like, Tensor):
        raise UserError("the exported program does not say which images it takes")
    size = like.shape[0] if isinstance(like.shape[0], int) else None
    shape, dtype = tuple(int(side) for side in like.shape[1:]), like.dtype
    return checked(program, any_batch(on_functions(program), shape, dtype, size or 2), shape, dtype, size)


def on_functions(program: fx.GraphModule) -> fx.GraphModule:
    """The graph of operations of ATen on functions of torch, without guards, on the same tensors. Raises UserError."""
    graph, copied = fx.Graph(), dict[fx.Node, Any]()
    for node in program.graph.nodes:
        if node.op == "output":
            flat, spec = pytree.tree_leaves(node.args[0]), getattr(program, "_out_spec", None)
            found = node.args[0] if spec is None else pytree.tree_unflatten(flat, spec)
            graph.output(fx.map_arg(found, copied.__getitem__))
        elif not (node.op == "call_module" and node.target == "_guards_fn"):
            args, keywords = (fx.map_arg(one, copied.__getitem__) for one in (node.args, node.kwargs))
            copied[node] = _copied(graph, node, args, keywords)
    plain = fx.GraphModule(program, graph).eval()
    plain.graph.eliminate_dead_code()
    return plain


def _copied(graph: fx.Graph, node: fx.Node, args: Any, keywords: Any) -> fx.Node:
    """An operation of a program, with a function or a method of torch in the place of one of ATen."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return graph.create_node(node.op, node.target, args, keywords, node.name)
    name = node.target._schema.name.removeprefix("aten::")
    name, inplace = RENAMED.get(name, name), name.endswith("_")
    if name == "clone":
        args, keywords = args[:1], {}
    if name == "slice":
        whole, dim, *ends = (*args, *[None, None, None][len(args) - 2 :]) if len(args) > 1 else (args[0], 0, None, None, None)
        sides = node.args[0].meta["val"].dim() if "val" in node.args[0].meta else dim + 1  # type: ignore[union-attr]
        return graph.call_function(operator.getitem, (whole, (*[slice(None)] * (dim % sides), slice(*ends[:3]))))
    if name in ARITHMETIC and len(args) == 2 and not keywords:
        return graph.call_function(ARITHMETIC[name], args)
    if name == "hardtanh_" or (inplace and hasattr(Tensor, name)):
        return graph.call_method(name, args, keywords) if hasattr(Tensor, name) else graph.call_function(functional.hardtanh_, args)
    if name in METHODS:
        return graph.call_method(name, args, keywords)
    target = FUNCTIONS.get(name) or next((found for held in PYTHON if (found := getattr(held, name, None)) is not None), None)
    if target is None:
        raise UserError(f"the exported program has an operation that is not known here: {node.target}")
    return graph.call_function(target, args, keywords)


def any_batch(plain: fx.GraphModule, shape: tuple[int, ...], dtype: torch.dtype, size: int) -> fx.GraphModule:
    """The graph, with `size` images baked into its reshapes replaced by the number of images."""
    values = values_of(plain, torch.rand(size, *shape, dtype=dtype))
    for node in list(plain.graph.nodes):
        if node.target not in SHAPED or not isinstance(node.args[0], fx.Node):
            continue
        before, after = values[node.args[0]], values[node]
        sizes = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], (list, tuple)) else node.args[1:]
        if before.dim() and after.dim() and len(before) == len(after) == size and not isinstance(sizes[0], fx.Node):
            with plain.graph.inserting_before(node):
                count = plain.graph.call_method("size", (node.args[0], 0))
            rest = after.shape[1:] if node.target != "expand" else sizes[1:]
            node.args = (node.args[0], (count, *rest))
    plain.recompile()
    return plain


def values_of(plain: fx.GraphModule, x: Tensor) -> dict[fx.Node, Any]:
    """The value of each operation on these images."""

    class Seen(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            found[n] = super().run_node(n)
            return found[n]

    found: dict[fx.Node, Any] = {}
    with torch.no_grad():
        Seen(plain).run(x)
    return found


def checked(
    program: nn.Module, plain: fx.GraphModule, shape: tuple[int, ...], dtype: torch.dtype, size: int | None
) -> fx.GraphModule:
    """The graph, if it computes for three batches at once what the program does for each. Raises UserError.

    `size`: the number of images that the program takes; None: any. What is called is `forward`, since a graph itself prints where
    it fails.
    """
    x = torch.rand(3 * (size or 1), *shape, dtype=dtype, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            wanted = [pytree.tree_leaves(program.forward(part)) for part in x.split(size or 1)]
            found, alone = pytree.tree_leaves(plain.forward(x)), pytree.tree_leaves(plain.forward(x[:1]))
    except Exception as error:  # foreign code
        raise UserError(f"the exported program can't be run as a plain graph on images of shape {shape}: {cause(error)}") from None
    for number, one in enumerate(found):
        whole = torch.cat([part[number] for part in wanted])
        gap = CLOSE * float(whole.abs().max()) if whole.numel() else 0.0
        same = one.shape == whole.shape and bool(((one - whole).abs() <= gap).all())
        if not same or not bool(((alone[number] - whole[:1]).abs() <= gap).all()):
            baked = f": its batch size, {size}, is part of it" if size is not None else ""
            raise UserError(
                f"the exported program mixes images, or depends on their number{baked}; export it with a free batch size"
            )
    return plain
