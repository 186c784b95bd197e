"""Conversion of a traced module, made of a closed list of operations, to a chain of layers with rules."""

import math
import re
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from robustbench_rkhs.bounds import operations as known
from robustbench_rkhs.bounds import rearranging as moving
from robustbench_rkhs.bounds.casts import precision_of
from robustbench_rkhs.bounds.coarse import coarse_steps
from robustbench_rkhs.bounds.folding import added, folded
from robustbench_rkhs.bounds.lengths import steady
from robustbench_rkhs.bounds.operations import UNCOMPUTED
from robustbench_rkhs.bounds.reading import Operation, Reader
from robustbench_rkhs.bounds.sketch import sketch
from robustbench_rkhs.bounds.tracing import Traced, images, place, trace
from robustbench_rkhs.layers import Concatenate, Residual
from robustbench_rkhs.layers.traced_maps import Pick
from robustbench_rkhs.lipschitz.bounds import Uncertifiable
from robustbench_rkhs.lipschitz.guard import named
from robustbench_rkhs.nodes.reasons import reason

CLOSE = 1e-8
"""Tolerance between the outputs of chain and model, relative to the largest: float64 rounding of deep networks."""
VIEWS = (*UNCOMPUTED, Pick)
"""Layers whose operation may return the memory that it was given."""
CLONES = ("clone", torch.clone)
OWN = {torch.float32: 1e-3, torch.float64: CLOSE}
"""The same in the model's own type."""
MOST = 20_000
"""Most layers of a chain: computation shared by branches is written out in each of them."""


class Item(NamedTuple):
    """A layer of the chain, with its name in the model."""

    name: str
    layer: nn.Module
    outputs: tuple[int, ...]
    """Output shape without the batch dimension."""


def chained(model: nn.Module, shape: tuple[int, ...]) -> nn.Sequential:
    r"""A float64 chain of layers with rules that computes what the model does on images of `shape`.

    The forward pass is recorded by torch.fx. Branches from one value that meet again become a `Residual` (added) or a `Concatenate`
    (dimension 1), starting at the last value that they have in common; so any graph with one input works, and computation shared
    by branches is written out in each. A normalisation is folded into the kernel before it, and a sum of kernels and identities
    into one kernel. Layers keep their dotted paths in the model ("~2" the second time).
    At the end, the outputs of chain and model are compared on random images.
    Raises Uncertifiable, naming every module and operation that is not on the list before anything is computed (`sketch`), and as
    `tracing.trace` does. Cost: a copy, and four forward passes in float64.
    """
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        if refusal := sketch(model, shape).refusal:
            raise Uncertifiable(refusal)
        traced = trace(model, shape)
        if rounded := _rounded(model, shape):
            raise Uncertifiable(f"{named('', model)}: {rounded}")
        chain = _Builder(traced, shape, type(model).__name__).chain()
        own = traced.model is not traced.root or _agrees_itself(model, chain, images(shape, 3, 3))
        if not own or not all(_agrees(traced.model, chain, images(shape, count, count) * count) for count in (3, 1)):
            raise Uncertifiable(f"{named('', model)}: the traced graph does not compute what the model does")
    return chain


def _rounded(model: nn.Module, shape: tuple[int, ...]) -> str:
    """Why a model that rounds to half precision is refused; empty where it does not. It runs once, as it is."""
    own = next((tensor for tensor in [*model.parameters(), *model.buffers()] if tensor.is_floating_point()), torch.zeros(1))
    try:
        return coarse_steps(model, images(shape, 2, 0).to(own))
    except Exception as refused:  # the model's own code, which was traced in float64
        return f"it does not take an input of shape {shape}: {reason(refused)}"


def _agrees(model: nn.Module, chain: nn.Module, x: Tensor) -> bool:
    """Whether both give the same outputs up to rounding; inputs that a layer does not take are left for its rule to refuse."""
    try:
        wanted = model(x.clone())
    except Exception:  # the model's own code, which was traced with two images
        return False
    found = chain(x.clone())
    if not wanted.isfinite().all():  # NaN or infinite weights: the rule raises the error
        return not all(tensor.isfinite().all() for tensor in [*model.parameters(), *model.buffers()])
    return wanted.shape == found.shape and bool((wanted - found).abs().max() <= CLOSE * wanted.abs().max())


def _agrees_itself(model: nn.Module, chain: nn.Module, x: Tensor) -> bool:
    """Whether the model as it is, in its own type, gives the chain's outputs up to its rounding."""
    own = precision_of(model)
    home = next((tensor.device for tensor in [*model.parameters(), *model.buffers()]), x.device)
    try:
        wanted = model(x.to(home, own)).to(x)
    except Exception:  # the model's own code
        return False
    found = chain(x)
    return wanted.shape == found.shape and bool((wanted - found).abs().max() <= OWN[own] * wanted.abs().max())


class _Builder:
    """Converts a traced graph to layers."""

    def __init__(self, traced: Traced, shape: tuple[int, ...], title: str) -> None:
        self.traced, self.shape, self.title, self.made = traced, shape, title, 0
        self.roots: dict[fx.Node, tuple[fx.Node, int]] = {}
        """The value whose memory a value shares, and how often that had been overwritten."""
        self.writes: dict[fx.Node, int] = {}
        self.parents: dict[fx.Node, fx.Node] = {}
        """The dominator of a value: the last value through which all paths to it go."""
        self.depths: dict[fx.Node, int] = {}
        self.parts: set[fx.Node] = set()
        """Operations that return several parts of one value."""
        self.reader = Reader(traced, self.depths, self.parts)
        self.source, self.sink = self._read()

    def chain(self) -> nn.Sequential:
        return _sequence(self._between(self.source, self.sink))

    def _read(self) -> tuple[fx.Node, fx.Node]:
        """The operations of all values that the output depends on, in order."""
        nodes = list(self.traced.graph.nodes)
        source, output = nodes[0], nodes[-1]
        self.depths[source], self.roots[source], self.writes[source] = 0, (source, 0), 0
        sizes: set[fx.Node] = set()
        for node in nodes[1:-1]:
            try:
                if not any(one in self.depths or one in sizes or one in self.parts for one in node.all_input_nodes):
                    continue  # a constant
                if node.target in moving.SPLITS and node.args and node.args[0] in self.depths:
                    self.parts.add(node)
                    continue
                if not isinstance(self.traced.values[node], Tensor):
                    if node.target not in known.SIZES:
                        raise Uncertifiable("no rule for this operation")
                    sizes.add(node)
                    continue
                for one in sizes.intersection(node.all_input_nodes):
                    if not steady(one, self.traced.values, self.depths):
                        raise Uncertifiable("it computes with the number of images")
                self._add(node, self.reader.read(node))
            except Uncertifiable as refused:
                raise Uncertifiable(self._named(node, refused)) from None
        (found,) = output.args
        if not isinstance(found, fx.Node) or found not in self.depths:
            what = "a constant" if isinstance(found, fx.Node) else type(found).__name__
            raise Uncertifiable(
                f"no proven Lipschitz bound for the model ({self.title}): expected one tensor of outputs, found {what}"
            )
        try:
            self._check_kept(found)
        except Uncertifiable as refused:
            raise Uncertifiable(self._named(output, refused)) from None
        return source, found

    def _named(self, node: fx.Node, refused: Uncertifiable) -> str:
        path, operation = place(node)
        if not operation:
            module = self.traced.root.get_submodule(str(node.target))
            text = str(refused)
            start = named(path, module)
            return text if text.startswith(start) else f"{start}: {text}"
        return f"no proven Lipschitz bound for {path or 'the model'} (operation {operation}): {refused}"

    def _add(self, node: fx.Node, operation: Operation) -> None:
        for one in operation.inputs:
            self._check_kept(one)
        first = operation.inputs[0]
        root, version = self.roots[first]
        if _overwrites(node, self.traced.root):
            self.writes[root] += 1
            self.roots[node] = root, self.writes[root]
        elif node.target not in CLONES and not operation.join and all(isinstance(o, VIEWS) for o in operation.layers[0]):
            self.roots[node] = root, version
        else:
            self.roots[node], self.writes[node] = (node, 0), 0
        parent = first
        for one in operation.inputs[1:]:
            parent = self._common(parent, one)
        self.parents[node], self.depths[node] = parent, self.depths[parent] + 1

    def _check_kept(self, value: fx.Node) -> None:
        """Raises Uncertifiable where a value that is read now was overwritten after it was computed."""
        root, version = self.roots[value]
        if version < self.writes[root]:
            raise Uncertifiable("it reads a value that an operation before it overwrites")

    def _common(self, one: fx.Node, other: fx.Node) -> fx.Node:
        """The last common dominator of both values."""
        while one is not other:
            if self.depths[one] >= self.depths[other]:
                one = self.parents[one]
            else:
                other = self.parents[other]
        return one

    def _between(self, start: fx.Node, end: fx.Node) -> list[Item]:
        """The layers that compute the value `end` from the value `start`, which dominates it."""
        runs: list[list[Item]] = []
        while end is not start:
            operation, outputs = self.reader.operations[end], self.reader.outputs(end)
            name = ".".join(filter(None, [place(end)[0], re.sub(r"_\d+$", "", end.name) if end.op != "call_module" else ""]))
            if not operation.join:
                (previous,), (layers,) = operation.inputs, operation.layers
                shapes = [outputs if number == len(layers) - 1 else None for number in range(len(layers))]
                runs.append([Item(name, one, at or self.reader.outputs(previous)) for one, at in zip(layers, shapes, strict=True)])
            else:
                previous = self.parents[end]
                branches = []
                for one, layers in zip(operation.inputs, operation.layers, strict=True):
                    branches.append(
                        [*self._between(previous, one), *(Item(name, each, self.reader.outputs(one)) for each in layers)]
                    )
                joined = self._joined(operation.join, list(map(_folded, branches)), self.reader.outputs(previous))
                size = (sum(math.prod(self.reader.outputs(one)) for one in operation.inputs),)
                ends = [size if operation.after else outputs, *[size] * (len(operation.after) - 1), outputs]
                runs.append([Item(name, one, at) for one, at in zip((joined, *operation.after), ends, strict=False)])
            self.made += len(runs[-1])
            if self.made > MOST:
                raise Uncertifiable(
                    f"no proven Lipschitz bound for the model ({self.title}): its branches share too much to be written out"
                )
            end = previous
        return _folded([item for run in reversed(runs) for item in run])

    def _joined(self, join: str, branches: list[list[Item]], shape: tuple[int, ...]) -> nn.Module:
        if join == "cat":
            return Concatenate([_sequence(branch) for branch in branches])
        merged = added([[item.layer for item in branch] for branch in branches], shape)
        if merged is not None:
            return merged
        one, other = map(_sequence, branches)
        return Residual(one, other)


def _overwrites(node: fx.Node, root: fx.GraphModule) -> bool:
    """Whether an operation works in place."""
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(str(node.target)), "inplace", False))
    if node.target in known.IN_PLACE or node.kwargs.get("inplace"):
        return True
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name.endswith("_") and not name.endswith("__")


def _folded(items: list[Item]) -> list[Item]:
    """The chain with every diagonal layer folded into the kernel before it."""
    kept: list[Item] = []
    for item in items:
        one = folded(kept[-1].layer, item.layer, kept[-1].outputs) if kept else None
        if one is None:
            kept.append(item)
        else:
            kept[-1] = Item(kept[-1].name, one, item.outputs)
    return kept


def _sequence(items: list[Item]) -> nn.Sequential:
    """A chain with the model's dotted paths; nn.Sequential refuses dots, though only get_submodule depends on that."""
    chain = nn.Sequential()
    for item in items:
        name, number = item.name, 2
        while name in chain._modules:
            name, number = f"{item.name}~{number}", number + 1
        chain._modules[name] = item.layer
    return chain.eval()
