"""Tracing: a module's forward pass as a graph of operations, recorded by running it on a symbol."""

import copy
import math
import operator
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.node import _get_qualified_name

from robustbench_rkhs.bounds.casts import precision_of, without_casts
from robustbench_rkhs.bounds.lengths import Unknown, asserted, recording_lengths
from robustbench_rkhs.bounds.own_type import same_operations
from robustbench_rkhs.lipschitz.bounds import Uncertifiable
from robustbench_rkhs.lipschitz.guard import foreign, intact, named, parts
from robustbench_rkhs.nodes.reasons import reason
from robustbench_rkhs.runtime import contexts
from robustbench_rkhs.runtime.modes import advice

TORCHVISION = ("torchvision.transforms.functional", "torchvision.transforms.v2.functional")
"""Modules whose functions are recorded as they are, where they were imported: they ask a symbol for its type."""
PREFIX = "model"
"""The traced model's name in the module that holds it."""
CALLS = ("__call__", "_call_impl", "_wrapped_call_impl", "_slow_forward", "__getattr__", "__getattribute__")
"""Methods that run around a forward pass or find its parts: a class that overrides one is refused."""

PUBLIC = {
    "torch._C._fft.fft_": "torch.fft.",
    "torch._C._linalg.linalg_": "torch.linalg.",
    "torch._C._nn.": "torch.nn.functional.",
    "_operator.": "operator.",
}
"""Public names of internal torch functions."""


def is_torchvision_normalize(module: nn.Module) -> bool:
    """Whether this is torchvision's Normalize, of either version."""
    return type(module).__name__ == "Normalize" and type(module).__module__.startswith("torchvision.transforms")


class Traced(NamedTuple):
    """A model's operations, in the order they run."""

    model: nn.Module
    """A float64 copy on the CPU; its graph where the forward casts to the model's own type, which float64 must not pass through."""
    root: fx.GraphModule
    graph: fx.Graph
    values: dict[fx.Node, Any]
    """The result of each operation on two random images: only shapes and constants are read."""


class Holder(nn.Module):
    """Calls the model with one argument, as users do."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Any) -> Any:
        return self.model(x)


def _in_place(name: str) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    return lambda self, other: self.tracer.create_proxy("call_function", getattr(operator, name), (self, other), {})


class Symbol(fx.Proxy):
    """A symbol that distinguishes `x += y` from `x = x + y`."""

    __iadd__ = _in_place("iadd")
    __isub__ = _in_place("isub")
    __imul__ = _in_place("imul")
    __itruediv__ = _in_place("itruediv")


class Recorder(fx.Tracer):
    """Traces into modules that have no rule and are not from torch.nn; notes the context managers around their operations."""

    def __init__(self, example: Tensor | None = None) -> None:
        """`example`: images, by whose shape questions about sizes are answered; without them, such a forward is not traced."""
        searched = [math, *(sys.modules[name] for name in TORCHVISION if name in sys.modules)]
        wrapped: Any = tuple(searched) if example is not None else (math,)
        super().__init__(autowrap_modules=wrapped)
        held = [value for module in wrapped for value in vars(module).values() if isinstance(value, type)]
        self._autowrap_function_ids -= set(map(id, held))  # a class is also asked about by isinstance, as Tensor is
        self.contexts: set[str] = set()
        self.example = example

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        with contexts.noting_autocast(self.contexts), recording_lengths(root) if self.example is not None else nullcontext():
            return super().trace(root, concrete_args)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """The answer to a comparison of sizes, which does not depend on the number of images; any other is refused."""
        if self.example is None:
            return bool(super().to_bool(obj))
        try:
            with torch.no_grad():
                values = Values(fx.GraphModule(self.root, _until(obj.node)))
                values.run(self.example)
                found = {node: value for node, value in zip(self.graph.nodes, values.found.values(), strict=False)}
                return asserted(obj.node, found)
        except (Unknown, IndexError, TypeError, RuntimeError):
            return bool(super().to_bool(obj))

    def create_node(self, *args: Any, **keywords: Any) -> fx.Node:
        self.contexts |= contexts.active()
        return super().create_node(*args, **keywords)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if self.example is not None and is_torchvision_normalize(m):
            return True
        return not foreign(m) and not isinstance(m, nn.Sequential)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Symbol(node, self)


class Values(fx.Interpreter):
    """Records the result of each operation."""

    def __init__(self, root: fx.GraphModule) -> None:
        super().__init__(root)
        self.found: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.found[n] = super().run_node(n)
        return self.found[n]


def trace(model: nn.Module, shape: tuple[int, ...]) -> Traced:
    """The operations of a model in eval mode on images of `shape`.

    Raises Uncertifiable where a module has hooks, runs other code than the forward of its class, is in training mode, or changes
    itself when it runs; and where the forward pass cannot be traced (it branches on values) or does not take such images.
    """
    check(model)
    double = copy.deepcopy(model).to("cpu", torch.float64).requires_grad_(False)
    before, recorder = _state(double), Recorder(images(shape, 2, 0))
    try:
        graph = recorder.trace(Holder(double))
    except Uncertifiable:
        raise
    except Exception as refused:  # the model's own code runs here, and may raise anything
        raise Uncertifiable(f"{named('', model)}: its forward cannot be traced: {reason(refused)}") from None
    if rounded := in_autocast(recorder):
        raise Uncertifiable(f"{named('', model)}: {rounded}")
    if not _alike(model, shape, graph, recorder.root):
        raise Uncertifiable(f"{named('', model)}: its forward runs other operations in its own type than in float64")
    try:
        cast = without_casts(graph, recorder.root, precision_of(model))
    except Uncertifiable as refused:
        raise Uncertifiable(f"{named('', model)}: {refused}") from None
    root = fx.GraphModule(recorder.root, graph)
    values = Values(root)
    try:
        values.run(images(shape, 2, 0))
    except Exception as refused:
        raise Uncertifiable(f"{named('', model)}: it does not take an input of shape {shape}: {reason(refused)}") from None
    changed = sorted(name for name, value in _state(double).items() if not _same(before.get(name), value))
    if changed:
        raise Uncertifiable(f"{named('', model)}: its forward changes {changed[0]}")
    return Traced(root if cast else double, root, graph, values.found)


def _alike(model: nn.Module, shape: tuple[int, ...], graph: fx.Graph, root: Any) -> bool:
    """Whether the model's own forward is that of its float64 copy: it may ask a tensor for its type, and branch."""
    kinds = {tensor.dtype for tensor in [*model.parameters(), *model.buffers()] if tensor.is_floating_point()}
    if kinds <= {torch.float64}:
        return True
    recorder = Recorder(images(shape, 2, 0).to(precision_of(model)))
    try:
        own = recorder.trace(Holder(copy.deepcopy(model).to("cpu").requires_grad_(False)))
    except Exception:  # the model's own code, which was traced in float64
        return False
    return same_operations(graph, own, (root, recorder.root))


def in_autocast(recorder: Recorder) -> str:
    """Why a forward that runs under autocast has no certificate; empty for others. Without gradients a proof is the same."""
    if contexts.AUTOCAST not in recorder.contexts:
        return ""
    return (
        f"its forward runs under {contexts.AUTOCAST}, which rounds its numbers to half precision, further than any bound here "
        "covers: leave it out of forward"
    )


def _until(last: fx.Node) -> fx.Graph:
    """The graph so far, up to an operation."""
    graph, copied = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in last.graph.nodes:
        copied[node] = graph.node_copy(node, copied.__getitem__)
        if node is last:
            break
    graph.output(copied[last])
    return graph


def images(shape: tuple[int, ...], count: int, seed: int) -> Tensor:
    """Random float64 images, the same at each call."""
    return torch.randn(count, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def place(node: fx.Node) -> tuple[str, str]:
    """Dotted path of the module in which an operation runs, and the name of the operation in a refusal."""
    if node.op == "call_module":
        return user_path(str(node.target)), ""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = user_path(str(stack[-1][0])) if stack else ""
    target = node.target
    if not callable(target):
        return path, str(target)
    name = _get_qualified_name(target)
    for inner, public in PUBLIC.items():
        name = name.replace(inner, public)
    return path, name


def user_path(path: str) -> str:
    """A path in the holder, translated to one in the model."""
    return path.removeprefix(PREFIX).removeprefix(".")


def check(model: nn.Module) -> None:
    """Raises Uncertifiable where a module runs other code than its class, has hooks or is in training mode."""
    for path, module in parts(model):
        kind = type(module)
        try:
            if isinstance(module, torch.jit.ScriptModule):
                raise Uncertifiable("it is compiled to TorchScript, whose code no rule reads; certify the nn.Module it was made of")
            if kind.__name__ == "OptimizedModule":
                raise Uncertifiable("it is compiled, which no rule covers; certify the original model")
            intact(module, kind)
            if module.training:
                raise Uncertifiable(f"it is in training mode: {advice(module)}")
            changed = [name for name in CALLS if getattr(kind, name, None) is not getattr(nn.Module, name, None)]
            if _generated(kind):
                changed.remove("__call__")
            if changed and (foreign(module) or isinstance(module, nn.Sequential)):
                raise Uncertifiable(f"{kind.__name__} overrides {', '.join(changed)} of Module")
        except Uncertifiable as refused:
            raise Uncertifiable(f"{named(path, module)}: {refused}") from None


def _generated(kind: type) -> bool:
    """Whether this is the class of one fx.GraphModule, whose `__call__` runs that of nn.Module and prints the code of an error."""
    call = vars(kind).get("__call__")
    whole = (
        kind.__bases__ == (fx.GraphModule,) and getattr(call, "__qualname__", "") == "GraphModule.recompile.<locals>.call_wrapped"
    )
    return whole and call.__module__ == fx.graph_module.__name__


_PLAIN = (bool, int, float, str, tuple, list, dict, set, type(None))


def _state(model: nn.Module) -> dict[str, Any]:
    """Everything that a forward pass could change for a later one: plain attributes and copies of tensors."""
    state: dict[str, Any] = {}
    for path, module in parts(model):
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                state[f"{path}.{name}".lstrip(".")] = value.detach().clone()
            elif isinstance(value, _PLAIN) and name not in ("_parameters", "_buffers", "_modules"):
                state[f"{path}.{name}".lstrip(".")] = repr(value)
            elif name not in ("_parameters", "_buffers", "_modules"):
                state[f"{path}.{name}".lstrip(".")] = id(value)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        state[name] = tensor.detach().clone()
    return state


def _same(before: Any, after: Any) -> bool:
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return before.shape == after.shape and bool(torch.equal(before.nan_to_num(), after.nan_to_num()))
    return type(before) is type(after) and bool(before == after)
