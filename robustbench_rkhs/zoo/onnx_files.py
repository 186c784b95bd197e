"""ONNX files as networks: read by onnx2torch, flattened to layers and functions of torch, for any number of images."""

import copy
import importlib
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from robustbench_rkhs.bounds.tracing import Recorder
from robustbench_rkhs.nodes.missing import missing
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import cause
from robustbench_rkhs.runtime.extras import require
from robustbench_rkhs.zoo.programs import CLOSE, any_batch, checked, on_functions, values_of

NEWEST = 18
"""The newest set of operations that onnx2torch knows well; files of newer ones are converted to it."""
SMALL = 50_000_000
"""Weights up to which a file is also run by onnx's own evaluator in NumPy, for comparison."""

MOST, MOST_BATCH = 1 << 28, 4096
"""Numbers in a value for one image, and images of a baked-in batch, up to which a file is read."""
FLOATS = (1, 10, 11)
"""ONNX's numbers of float32, float16 and float64."""


class OnnxNetwork(NamedTuple):
    """The network of an ONNX file."""

    model: nn.Module
    shape: tuple[int, ...]
    """Of the images that the file asks for; others of as many pixels are reshaped, in their order."""
    batch: int | None
    """The batch size that was baked in, and is mended; None: any."""


def load_onnx(path: Path) -> OnnxNetwork:
    """The network of an ONNX file. Nothing in it is executed but its operations. Raises UserError in one line.

    Whatever depends on shapes only is computed once. The result is compared on random images: with the file's own graph, and with
    onnx's evaluator.
    """
    if not path.is_file():
        raise missing("ONNX file", str(path))
    for package in ("onnx", "onnx2torch"):
        require(package, "onnx", f"--model {path.name}")
    onnx, onnx2torch = importlib.import_module("onnx"), importlib.import_module("onnx2torch")
    try:
        stored = _renamed(onnx.load(str(path)))
        shape, batch = _asked(stored)
        _check_sizes(importlib.import_module("onnx.shape_inference").infer_shapes(stored, data_prop=True), batch or 1)
        if max(one.version for one in stored.opset_import if one.domain in ("", "ai.onnx")) > NEWEST:
            stored = importlib.import_module("onnx.version_converter").convert_version(stored, NEWEST)
        program = onnx2torch.convert(stored).eval().requires_grad_(False)
    except UserError as refused:
        raise UserError(f"{path}: {refused}") from None
    except Exception as error:  # foreign bytes, or an operation that onnx2torch does not know
        raise UserError(f"{path} can't be read by onnx2torch: {cause(error)}") from None
    try:
        with torch.no_grad():
            plain = _plain(copy.deepcopy(program), shape, batch or 2)
        _check(stored, program, torch.rand(batch or 1, *shape))
        return OnnxNetwork(checked(program, plain, shape, torch.float32, batch), shape, batch)
    except UserError as refused:
        raise UserError(f"{path}: {refused}") from None
    except Exception as error:
        raise UserError(f"{path} can't be written as layers: {cause(error)}") from None


def _check(stored: Any, program: nn.Module, x: Tensor) -> None:
    """Raises UserError where onnx2torch computes something else than the evaluator of onnx, which is plain NumPy."""
    if sum(tensor.numel() for tensor in program.state_dict().values()) > SMALL:
        return
    evaluator = importlib.import_module("onnx.reference").ReferenceEvaluator(stored)
    (wanted, *_), found = evaluator.run(None, {evaluator.input_names[0]: x.numpy()}), program.forward(x)
    wanted = torch.from_numpy(wanted)
    if found.shape != wanted.shape or not bool((found - wanted).abs().max() <= CLOSE * wanted.abs().max()):
        raise UserError("onnx2torch reads it as another function than onnx itself")


def _plain(program: fx.GraphModule, shape: tuple[int, ...], size: int) -> fx.GraphModule:
    """The file's graph on layers of torch.nn and functions of torch."""
    values = values_of(program, torch.rand(size, *shape))
    known: set[fx.Node] = set()
    for number, node in enumerate(list(program.graph.nodes)):
        if node.op in ("placeholder", "output"):
            continue
        layer: Any = program.get_submodule(str(node.target)) if node.op == "call_module" else None
        shape_alone = type(layer).__name__ == "OnnxShape"
        if getattr(getattr(layer, "math_op_function", None), "__name__", "") == "_onnx_div" and values[node].is_floating_point():
            layer.math_op_function = torch.div  # which asks for no types, as division of integers must
        if shape_alone or all(one in known for one in node.all_input_nodes):
            known.add(node)
        if shape_alone and isinstance(values[node], Tensor):
            _replace(program, node, values[node], f"shape_{number}")
    for number, node in enumerate(list(program.graph.nodes)):
        if node in known and node.all_input_nodes and isinstance(values[node], Tensor):
            _replace(program, node, values[node], f"known_{number}")
    program.graph.eliminate_dead_code()
    program.recompile()
    try:
        plain = fx.GraphModule(program, Recorder().trace(program))
    except Exception:  # a converter of onnx2torch that asks for the type of a value, say: record operations instead of layers
        plain = on_functions(make_fx(program, tracing_mode="real", pre_dispatch=True)(torch.rand(size, *shape)))
    for layer in plain.modules():
        vars(layer).update({name: tuple(value) for name, value in vars(layer).items() if type(value) is list})  # as torch has sizes
    if len(shape) != 3:  # not an image: images of as many pixels are laid out as the file asks
        first = next(iter(plain.graph.nodes))
        users = list(first.users)
        with plain.graph.inserting_after(first):
            laid_out = plain.graph.call_method("reshape", (first, -1, *shape))
        for user in users:
            user.replace_input_with(first, laid_out)
    return any_batch(plain, shape, torch.float32, size)


def _replace(program: fx.GraphModule, node: fx.Node, value: Tensor, name: str) -> None:
    """Put a constant in the place of an operation."""
    program.register_buffer(name, value)
    with program.graph.inserting_before(node):
        node.replace_all_uses_with(program.graph.get_attr(name))


def _renamed(stored: Any) -> Any:
    """The file with names of ours: torch.fx writes those of nodes into Python code, where a name of the file could be code."""
    graph, names = stored.graph, {"": ""}
    for number, node in enumerate(graph.node):
        node.name = f"node_{number}"
        for values in (node.input, node.output):
            values[:] = [names.setdefault(one, f"value_{len(names)}") for one in values]
    for one in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        one.name = names.setdefault(one.name, f"value_{len(names)}")
    return stored


def _asked(stored: Any) -> tuple[tuple[int, ...], int | None]:
    """The shape of the images without the batch, and the batch size if it is baked in."""
    weights = {one.name for one in stored.graph.initializer}
    asked = [one for one in stored.graph.input if one.name not in weights]
    if len(asked) != 1:
        raise UserError(f"it takes {len(asked)} inputs, expected one: the images")
    kind = asked[0].type.tensor_type
    sizes = [side.dim_value or None for side in kind.shape.dim]
    if len(sizes) < 2 or not all(side is not None and side > 0 for side in sizes[1:]):
        raise UserError(f"expected an input of known shape (batch, ...), found {sizes}")
    if kind.elem_type not in FLOATS:
        raise UserError("expected an input of floating-point images, found another type")
    return tuple(side for side in sizes[1:] if side), sizes[0]


def _check_sizes(inferred: Any, batch: int) -> None:
    """Raises UserError where a value of the graph is too large for one image, before anything is computed."""
    graph = inferred.graph
    for one in (*graph.input, *graph.value_info, *graph.output):
        sides = [side.dim_value or 1 for side in one.type.tensor_type.shape.dim]
        numbers = math.prod(sides) // (batch if sides[:1] == [batch] else 1)
        if batch > MOST_BATCH or numbers > MOST:
            raise UserError(f"a value of shape {sides} is too large: expected at most {MOST:,} numbers an image")
