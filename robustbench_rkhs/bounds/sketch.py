"""Analysis of a model's graph without its numbers: its layers, their shapes, and everything that has no rule."""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from robustbench_rkhs.bounds import operations as known
from robustbench_rkhs.bounds import rearranging as moving
from robustbench_rkhs.bounds.casts import precision_of, without_casts
from robustbench_rkhs.bounds.coarse import coarse_weights
from robustbench_rkhs.bounds.normalising import NORMALISING, groups_of, to_be_traced
from robustbench_rkhs.bounds.tracing import Holder, Recorder, Values, check, in_autocast, is_torchvision_normalize, place, user_path
from robustbench_rkhs.lipschitz import guard
from robustbench_rkhs.lipschitz.bounds import Uncertifiable
from robustbench_rkhs.nodes.reasons import reason

LISTED = 8
"""Kinds of layers and operations that one refusal names; the rest are counted."""


class Lack(NamedTuple):
    """A layer or an operation without a rule."""

    where: str
    """Its name in a refusal: path and type, or operation."""
    kind: str
    why: str


class Layer(NamedTuple):
    """A layer in the graph, without its numbers."""

    module: nn.Module
    """Only its type and options are meaningful; its tensors may hold no numbers."""
    inputs: tuple[int, ...]
    """Without the batch dimension."""
    path: str
    alone: bool
    """True if it lies in no branch: the whole output depends on it."""


class Sketch(NamedTuple):
    """What is known about a model without computing anything."""

    refusal: str = ""
    """Why there is no Lipschitz bound, with everything that lacks a rule; empty where types and shapes allow one."""
    layers: tuple[Layer, ...] = ()
    """The layers in the order they run; empty where the model could not be run on shapes alone."""
    contexts: frozenset[str] = frozenset()
    """Context managers of torch in which operations of its own code run, such as torch.no_grad."""


def sketch(model: nn.Module, shape: tuple[int, ...]) -> Sketch:
    """The layers of a model in eval mode on images of `shape`, and those that have no rule.

    The model is only read: a copy whose tensors have shapes but no numbers is traced and run. Whatever depends on numbers is not
    seen here: a refusal is final, but no refusal is no guarantee. Cost: a tenth of a second for a hundred layers.
    """
    if rounded := coarse_weights(model):
        return Sketch(rounded)
    try:
        for _ in guard.leaves(model):
            pass
        lacks: list[Lack] = []
    except Uncertifiable:
        if not to_be_traced(model):
            return Sketch(in_one_line([_lack(path, module, why) for path, module, why in guard.unruled(model)]))
        lacks = [Lack("", "", "")]  # to be seen in the graph
    try:
        check(model)
    except Uncertifiable as refused:
        return Sketch(str(refused) if lacks else "")
    try:
        with torch.no_grad():
            recorder = Recorder(torch.empty(2, *shape, device="meta"))
            graph = recorder.trace(Holder(without_numbers(model)))
            if rounded := in_autocast(recorder):
                return Sketch(f"{guard.named('', model)}: {rounded}", (), frozenset(recorder.contexts))
            without_casts(graph, recorder.root, precision_of(model))
            values = Values(root := fx.GraphModule(recorder.root, graph))
            values.run(torch.empty(2, *shape, device="meta"))
    except Exception:  # the model's own code, which may need numbers
        return Sketch()
    found = _Graph(root, graph, values.found)
    return Sketch(in_one_line(found.lacks) if lacks else "", tuple(found.layers), frozenset(recorder.contexts))


def in_one_line(lacks: Sequence[Lack]) -> str:
    """Everything without a rule, each kind once; empty where there is none."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for lack in lacks:
        kinds.setdefault((lack.kind, lack.why), []).append(lack.where)
    texts = [f"{places[0]}: {why}" + (f" ({len(places)} such)" if len(places) > 1 else "") for (_, why), places in kinds.items()]
    if not texts:
        return ""
    rest = f"; nor for {len(texts) - LISTED} more kinds" if len(texts) > LISTED else ""
    return "no proven Lipschitz bound for " + "; nor for ".join(texts[:LISTED]) + rest


def without_numbers(model: nn.Module) -> nn.Module:
    """A copy whose parameters and buffers have only shapes."""
    bare: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        empty = torch.empty_like(tensor, device="meta")
        bare[id(tensor)] = nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(model, bare)


def _lack(path: str, module: nn.Module, why: str) -> Lack:
    kind = type(module).__name__
    return Lack(f"{path or 'the model'} ({kind})", kind, why)


class _Graph:
    """Runs a graph on shapes and collects its layers and everything without a rule."""

    def __init__(self, root: fx.GraphModule, graph: fx.Graph, values: dict[fx.Node, Any]) -> None:
        self.root, self.values, self.layers, self.lacks = root, values, list[Layer](), list[Lack]()
        nodes = list(graph.nodes)
        self.images, self.sizes, self.lost = {nodes[0]}, set[fx.Node](), set[fx.Node]()
        last = _last_uses(nodes)
        waiting = {nodes[0]}
        for number, node in enumerate(nodes[1:-1], 1):
            after = {one for one in (*waiting, node) if last.get(one, 0) > number}
            self._read(node, alone=len(waiting) == 1 and not after & waiting)
            waiting = after & self.images

    def _read(self, node: fx.Node, alone: bool) -> None:
        inputs = node.all_input_nodes
        if any(one in self.lost and not isinstance(self.values[one], Tensor) for one in inputs):
            self._keep(node, lost=True)  # an entry of what had no rule
            return
        if not any(one in self.images or one in self.sizes for one in inputs):
            return  # a constant
        if not isinstance(self.values[node], Tensor) and node.target in known.SIZES:
            self.sizes.add(node)
            return
        why = self._missing(node)
        if why:
            path, operation = place(node)
            kind = operation or type(self.root.get_submodule(str(node.target))).__name__
            where = f"{path or 'the model'} ({f'operation {operation}' if operation else kind})"
            self.lacks.append(Lack(where, kind, why))
        else:
            self._layer(node, alone)
        self._keep(node, bool(why))

    def _keep(self, node: fx.Node, lost: bool) -> None:
        self.images.add(node)
        if lost:
            self.lost.add(node)

    def _missing(self, node: fx.Node) -> str:
        """Why an operation has no rule, as far as its type and shapes tell."""
        read = [one for one in node.all_input_nodes if one in self.images]
        if node.target in known.REASONS:
            return known.REASONS[node.target]
        if node.target in known.CONCATENATE | known.ADD | known.SUBTRACT | moving.STACKS | known.EXTREMES:
            two = len(read) == 2 or node.target not in known.EXTREMES
            return "" if read and two else "no rule for this operation"
        if node.target in known.MULTIPLY | known.DIVIDE:
            return "no rule for two values that both depend on the image" if len(read) > 1 else ""
        if node.target in moving.MATMUL | moving.LINEAR:
            return "" if len(read) == 1 else "no rule for two values that both depend on the image"
        if len(read) != 1 or not node.args or node.args[0] is not read[0]:
            return "no rule for this operation"
        before, after = self.values[read[0]], self.values[node]
        if node.op == "call_module":
            return self._module_lacks(self.root.get_submodule(str(node.target)), node, tuple(before.shape[1:]))
        if node.target in known.RESHAPE:
            if after.dim() < 2 or len(after) != len(before):
                return f"no rule for reshaping the batch to {tuple(after.shape)}"
            return _said(known.reshaped, tuple(before.shape[1:]), tuple(after.shape[1:]))
        listed = known.NEGATE | known.MEAN | known.ADAPTIVE | known.ADAPTIVE_MAX | known.LAYERS.keys() | known.ON_SHAPES.keys()
        listed |= moving.MOVES | moving.SPLITS
        if getattr(node.target, "__module__", "").startswith("torchvision.transforms") and node.target.__name__ == "normalize":  # type: ignore[union-attr]
            return ""
        return "" if node.target in listed else "no rule for this operation"

    def _module_lacks(self, module: nn.Module, node: fx.Node, before: tuple[int, ...]) -> str:
        if why := next((reason for kind, reason in known.UNRULED.items() if isinstance(module, kind)), ""):
            return why
        if len(node.args) > 1 or node.kwargs:
            return "no rule for a layer with several arguments" if guard.known(module) else "no rule for this type of layer"
        if type(module) in NORMALISING:
            return _said(groups_of, module, before)
        if is_torchvision_normalize(module):
            return ""
        if type(module) is nn.AdaptiveAvgPool2d:
            return _said(known.adaptive, module.output_size, before)
        return "" if guard.known(module) else "no rule for this type of layer"

    def _layer(self, node: fx.Node, alone: bool) -> None:
        first = next((one for one in node.all_input_nodes if one in self.images), None)
        if first is None or not isinstance(self.values[first], Tensor):
            return
        try:
            if node.op == "call_module":
                module, path = self.root.get_submodule(str(node.target)), user_path(str(node.target))
            elif node.target in known.LAYERS:
                args = known.in_tuples(fx.node.map_arg((node.args, node.kwargs), lambda one: self.values[one]))
                module, path = known.LAYERS[node.target](*args[0], **args[1]), place(node)[0]
            else:
                return
        except (Uncertifiable, TypeError):
            return  # its options have no rule, which is reported later
        self.layers.append(Layer(module, tuple(self.values[first].shape[1:]), path, alone))


def _last_uses(nodes: list[fx.Node]) -> dict[fx.Node, int]:
    """The number of the last operation that reads each value."""
    return {one: number for number, node in enumerate(nodes) for one in node.all_input_nodes}


def _said(function: Any, *given: Any) -> str:
    try:
        function(*given)
    except Uncertifiable as refused:
        return reason(refused)
    return ""
