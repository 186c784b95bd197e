"""The layers that compute each operation of a traced graph; an operation that is not on the list is refused."""

import inspect
import math
import operator
from collections.abc import Container
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional

from robustbench_rkhs.bounds import constants
from robustbench_rkhs.bounds import operations as known
from robustbench_rkhs.bounds import rearranging as moving
from robustbench_rkhs.bounds.tracing import Traced, user_path
from robustbench_rkhs.layers import MaxMin
from robustbench_rkhs.layers.traced_maps import Pick
from robustbench_rkhs.lipschitz.bounds import Uncertifiable


class Operation(NamedTuple):
    """The computation of one operation: layers in sequence, or a join of several values."""

    join: str
    """'' for layers on one value; 'sum' or 'cat'."""
    inputs: tuple[fx.Node, ...]
    layers: tuple[tuple[nn.Module, ...], ...]
    """The layers on each value."""
    after: tuple[nn.Module, ...] = ()
    """The layers on what was joined."""


class Reader:
    """Reads the operations of a traced graph, in order."""

    def __init__(self, traced: Traced, of_image: Container[fx.Node], parts: Container[fx.Node]) -> None:
        self.traced = traced
        self.of_image = of_image
        """Values that depend on the image; its owner adds to it as it reads on."""
        self.parts = parts
        """Operations that return several parts of one value."""
        self.operations: dict[fx.Node, Operation] = {}
        """What was read."""

    def outputs(self, node: fx.Node) -> tuple[int, ...]:
        """The shape of a value without the batch dimension."""
        return tuple(self.traced.values[node].shape[1:])

    def read(self, node: fx.Node) -> Operation:
        """The computation of an operation. Raises Uncertifiable where it is not on the list."""
        self.operations[node] = found = self._operation(node)
        return found

    def _value(self, argument: Any) -> Any:
        """An argument with constants and shapes substituted; values that depend on the image stay symbols."""
        return known.in_tuples(fx.node.map_arg(argument, lambda one: one if one in self.of_image else self.traced.values[one]))

    def _operation(self, node: fx.Node) -> Operation:
        target = node.target
        args, keywords = self._value(node.args), self._value(node.kwargs)
        if target in known.REASONS:
            raise Uncertifiable(known.REASONS[target])
        if target in known.CONCATENATE:
            return self._concatenation(target, args, keywords)
        if target in moving.STACKS:
            return self._arranged(target, list(args[0]), (list(args[0]), *args[1:]), keywords)
        if target in known.EXTREMES and len(args) == 2 and all(isinstance(one, fx.Node) for one in args):
            return self._extreme(target, args)
        if target is operator.getitem and node.args[0] in self.parts:
            return self._part(node, args)
        if target in known.ADD | known.SUBTRACT | known.MULTIPLY | known.DIVIDE:
            return self._arithmetic(target, args, keywords)
        read = [one for one in node.all_input_nodes if one in self.of_image]
        if target in moving.MATMUL and len(read) == 1 and len(args) == 2:
            left = args[0] is read[0]
            return Operation("", (read[0],), (tuple(moving.product(self.outputs(read[0]), args[1 if left else 0], left)),))
        if target in moving.LINEAR and len(read) == 1:
            put = moving.in_place_of(read[0], args)
            layers = moving.dense(self.outputs(read[0]), lambda x: moving.called(target, put(x), keywords))
            return Operation("", (read[0],), (tuple(layers),))
        if len(read) != 1 or not args or args[0] is not read[0]:
            raise Uncertifiable("no rule for this operation")
        before = self.outputs(args[0])
        if node.op == "call_module":
            if len(args) > 1 or keywords:
                raise Uncertifiable("no rule for a layer with several arguments")
            module = self.traced.root.get_submodule(str(target))
            layers = known.module_layers(user_path(str(target)), module, before)
        elif target in known.NEGATE:
            layers = constants.scaled(-1.0, before)
        elif target in known.RESHAPE:
            if len(self.traced.values[node].shape) < 2 or len(self.traced.values[node]) != len(self.traced.values[args[0]]):
                raise Uncertifiable(f"no rule for reshaping the batch to {tuple(self.traced.values[node].shape)}")
            layers = known.reshaped(before, self.outputs(node))
        elif target in known.ON_SHAPES:
            layers = _call(known.ON_SHAPES[target], (before, *args), keywords)
        elif target in known.MEAN:
            layers = _call(known.mean, (before, *args), keywords)
        elif target in known.ADAPTIVE:
            layers = _call(lambda input, output_size: known.adaptive(output_size, before), args, keywords)
        elif target in known.ADAPTIVE_MAX:
            layers = [_call(_adaptive_max, args, keywords)]
        elif target is functional.pad and _repeats(args, keywords):
            layers = moving.rearranged([before], lambda x: functional.pad(x[0], *args[1:], **keywords))
        elif target in known.LAYERS:
            layers = [_call(known.LAYERS[target], args, keywords).eval()]
        elif target in moving.MOVES and (target is not getattr or args[1] in moving.TRANSPOSED):
            put = moving.in_place_of(args[0], args)
            moving.keeps_batch(target, args, keywords, len(before) + 1)
            layers = moving.rearranged([before], lambda x: moving.called(target, put(x[0]), keywords))
        elif (
            getattr(target, "__module__", "").startswith("torchvision.transforms")
            and getattr(target, "__name__", "") == "normalize"
        ):
            layers = _call(known.normalized, (before, *args), keywords)
        else:
            raise Uncertifiable("no rule for this operation")
        return Operation("", (args[0],), (tuple(layers),))

    def _part(self, node: fx.Node, args: Any) -> Operation:
        """One of the parts into which an operation cuts a value."""
        whole = node.args[0]
        assert isinstance(whole, fx.Node)
        given, keywords = self._value(whole.args), self._value(whole.kwargs)
        put = moving.in_place_of(given[0], given)
        layers = moving.rearranged([self.outputs(given[0])], lambda x: moving.called(whole.target, put(x[0]), keywords)[args[1]])
        return Operation("", (given[0],), (tuple(layers),))

    def _extreme(self, target: Any, args: Any) -> Operation:
        """The larger or the smaller of two values: both, sorted, and one half of the result."""
        one, other = args
        shape = self.outputs(one)
        if self.outputs(other) != shape:
            raise Uncertifiable(f"no rule for images of {shape} and {self.outputs(other)}")
        size = math.prod(shape)
        index = torch.arange(size) + (0 if target in known.MAXIMA else size)
        return Operation("cat", (one, other), ((nn.Flatten(),),) * 2, (MaxMin(), Pick(index, shape, (2 * size,))))

    def _arranged(self, target: Any, nodes: list[fx.Node], args: Any, keywords: Any) -> Operation:
        """Values flattened, concatenated and put in order."""
        if not all(isinstance(one, fx.Node) for one in nodes):
            raise Uncertifiable("no rule for a constant beside images")
        layers = moving.rearranged([self.outputs(one) for one in nodes], lambda x: target(x, *args[1:], **keywords))
        return Operation("cat", tuple(nodes), ((nn.Flatten(),),) * len(nodes), tuple(layers))

    def _concatenation(self, target: Any, args: Any, keywords: Any) -> Operation:
        tensors, dim = _call(lambda tensors, dim=0, axis=None: (tensors, dim if axis is None else axis), args, keywords)
        tensors = list(tensors)
        if not all(isinstance(one, fx.Node) for one in tensors):
            raise Uncertifiable("no rule for a constant beside images")
        if dim % len(self.traced.values[tensors[0]].shape) != 1:
            return self._arranged(target, tensors, (tensors, dim), {})
        for node, earlier in reversed(list(self.operations.items())):  # cat(a, b, c) = cat(cat(a, b), c), which shares cat(a, b)
            size = len(earlier.inputs)
            if (
                earlier.join == "cat"
                and not earlier.after
                and size < len(tensors)
                and self._flat(node) == self._flat(*tensors[: self._length(node)])
            ):
                tensors = [node, *tensors[self._length(node) :]]
                break
        return Operation("cat", tuple(tensors), ((),) * len(tensors))

    def _flat(self, *nodes: fx.Node) -> list[fx.Node]:
        """The values joined by a concatenation of concatenations."""
        flat: list[fx.Node] = []
        for node in nodes:
            found = self.operations.get(node)
            flat += self._flat(*found.inputs) if found and found.join == "cat" and not found.after else [node]
        return flat

    def _length(self, node: fx.Node) -> int:
        return len(self._flat(node))

    def _arithmetic(self, target: Any, args: Any, keywords: Any) -> Operation:
        """Sums and differences of values, and their sums, differences, products and quotients with constants."""
        if (
            keywords.get("alpha", 1) != 1
            or keywords.get("rounding_mode") is not None
            or set(keywords) - {"alpha", "other", "rounding_mode"}
        ):
            raise Uncertifiable(f"no rule for the options {sorted(keywords)}")
        one, other = (*args, keywords["other"]) if "other" in keywords else args
        left, right = isinstance(one, fx.Node), isinstance(other, fx.Node)
        if left and right:
            if target not in known.ADD | known.SUBTRACT:
                raise Uncertifiable("no rule for two values that both depend on the image")
            if self.outputs(one) != self.outputs(other):
                raise Uncertifiable(f"no rule for adding images of {self.outputs(one)} and {self.outputs(other)}")
            minus = tuple(constants.scaled(-1.0, self.outputs(other))) if target in known.SUBTRACT else ()
            return Operation("sum", (one, other), ((), minus))
        image, constant = (one, other) if left else (other, one)
        before = self.outputs(image)
        if target in known.ADD:
            layers = constants.shifted(constant, before, 1)
        elif target in known.MULTIPLY:
            layers = constants.scaled(constant, before)
        elif target in known.SUBTRACT:
            layers = (
                constants.shifted(constant, before, -1)
                if left
                else [*constants.scaled(-1.0, before), *constants.shifted(constant, before, 1)]
            )
        elif left:
            layers = constants.scaled(constants.inverse(constant), before)
        else:
            raise Uncertifiable("no rule for a constant divided by a value that depends on the image")
        return Operation("", (image,), (tuple(layers),))


def _repeats(args: Any, keywords: Any) -> bool:
    """Whether a padding repeats pixels."""
    mode = args[2] if len(args) > 2 else keywords.get("mode", "constant")
    return mode in ("reflect", "replicate", "circular")


def _adaptive_max(input: Any, output_size: Any, return_indices: bool = False) -> nn.Module:
    return nn.AdaptiveMaxPool2d(output_size, return_indices)


def _call(function: Any, args: Any, keywords: Any) -> Any:
    """The function's value. Raises Uncertifiable for unknown options."""
    try:
        inspect.signature(function).bind(*args, **keywords)
    except TypeError as refused:
        raise Uncertifiable(f"no rule for these options: {refused}") from None
    return function(*args, **keywords)
