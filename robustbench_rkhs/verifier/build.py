"""Builds operations from the rows of a proof; unknown keys and sizes that do not match are rejected."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .activations import Activation
from .affine import Diagonal, Fit, Linear, Pad, Reshape, Shuffle, Unshuffle
from .chain import Branches
from .convolution import Average, Convolution
from .curved import GroupSort, Maximum, MaxMin
from .fourier import Fourier, Reflection, Sandwich
from .operations import Malformed, Operation, Shape, expected
from .proof import Proof, number, shape_of, whole

COMMON = {"operation", "layer", "inputs", "outputs", "bound", "arrays"}
DEEPEST = 32
"""Greatest nesting depth of branches."""


class Row:
    """One row of the proof's list of layers; records which keys and arrays were read."""

    def __init__(self, proof: Proof, row: Any, depth: int) -> None:
        expected(isinstance(row, dict) and COMMON <= set(row), f"a layer lacks one of {sorted(COMMON)}")
        expected(isinstance(row["arrays"], dict) and isinstance(row["layer"], str), "a layer's arrays or name are malformed")
        expected(depth < DEEPEST, f"branches are nested more than {DEEPEST} deep")
        self.proof, self.row, self.depth, self.used = proof, row, depth, set(COMMON)
        self.inputs, self.taken = shape_of(row["inputs"]), set[str]()

    def get(self, key: str) -> Any:
        """A setting."""
        expected(key in self.row, f"{self.row['operation']!r} lacks {key!r}")
        self.used.add(key)
        return self.row[key]

    def pair(self, key: str, least: int = 1) -> tuple[int, int]:
        """Two whole numbers: height and width."""
        value = self.get(key)
        expected(isinstance(value, list) and len(value) == 2, f"expected two numbers as {key}, found {value!r}")
        return whole(value[0], key, least), whole(value[1], key, least)

    def ends(self, least: int = 0) -> tuple[tuple[int, int], tuple[int, int]]:
        """Padding: [[top, bottom], [left, right]]."""
        value = self.get("padding")
        expected(isinstance(value, list) and len(value) == 2, f"expected four ends of padding, found {value!r}")
        expected(all(isinstance(side, list) and len(side) == 2 for side in value), f"expected four ends, found {value!r}")
        (top, bottom), (left, right) = ((whole(a, "padding", least), whole(b, "padding", least)) for a, b in value)
        return (top, bottom), (left, right)

    def numbers(self, *keys: str) -> tuple[float, ...]:
        """Finite settings."""
        return tuple(number(self.get(key), key) for key in keys)

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self.get(key)
        expected(isinstance(value, bool), f"expected {key} to be true or false, found {value!r}")
        return bool(value)

    def weight(self, name: str, dimensions: int) -> np.ndarray:
        """A finite array."""
        array = self.proof.numbers(self.row["arrays"].get(name))
        self.taken.add(name)
        expected(array.ndim == dimensions, f"array {name!r} has {array.ndim} dimensions, expected {dimensions}")
        expected(
            bool(np.isfinite(array).all()) and array.size > 0, f"array {name!r} of {self.row['layer']!r} is empty or not finite"
        )
        return array

    def bias(self) -> np.ndarray | None:
        """The bias, or None."""
        return self.weight("bias", 1) if "bias" in self.row["arrays"] else None

    def spectrum(self, name: str) -> np.ndarray:
        """Complex matrices, kept as real and imaginary parts."""
        real, imaginary = self.weight(f"{name}_real", 3), self.weight(f"{name}_imaginary", 3)
        expected(real.shape == imaginary.shape, f"the parts of {name!r} differ in shape")
        return real + 1j * imaginary

    def convolution(self, weight: np.ndarray, bias: np.ndarray | None) -> Convolution:
        """The convolution that the settings describe."""
        settings = self.pair("stride"), self.ends(), self.pair("dilation"), whole(self.get("groups"), "groups", 1)
        return Convolution(self.inputs, weight, bias, *settings, self.flag("circular"))


def chain(proof: Proof, rows: Any, inputs: Shape, depth: int = 0) -> list[Operation]:
    """The operations in a row. Raises Malformed."""
    expected(isinstance(rows, list), "expected a list of layers")
    found: list[Operation] = []
    for entry in rows:
        row = Row(proof, entry, depth)
        expected(row.inputs == inputs, f"layer {entry['layer']!r} takes {row.inputs}, the one before outputs {inputs}")
        build = OPERATIONS.get(entry["operation"]) if isinstance(entry["operation"], str) else None
        if build is None:
            raise Malformed(f"unknown operation {entry['operation']!r}")
        operation = build(row)
        expected(set(entry) == row.used, f"unexpected keys in {entry['operation']!r}: {sorted(set(entry) - row.used)}")
        expected(set(entry["arrays"]) == row.taken, f"unexpected arrays in {entry['operation']!r}")
        inputs = shape_of(entry["outputs"])
        expected(operation.outputs == inputs, f"layer {entry['layer']!r} makes {operation.outputs}, not {inputs}")
        operation.claim = None if entry["bound"] is None else number(entry["bound"], "bound")
        found.append(operation)
    return found


def _branches(row: Row, added: bool) -> Branches:
    parts = row.get("branches")
    expected(isinstance(parts, list), "expected a list of branches")
    return Branches(row.inputs, [chain(row.proof, part, row.inputs, row.depth + 1) for part in parts], added)


def _sandwich(row: Row) -> Sandwich:
    a, b, shift = row.weight("a", 2), row.weight("b", 2), row.weight("shift", 1)
    expected(a.shape[0] == b.shape[0], "the matrices of a Sandwich layer do not fit")
    inner = Linear(row.inputs, math.sqrt(2) * b, shift)
    return Sandwich(inner, Linear(inner.outputs, math.sqrt(2) * a.T, None), np.concatenate([a, b], axis=1))


def _fourier_sandwich(row: Row) -> Sandwich:
    outer, b, shift, torus = row.spectrum("outer"), row.spectrum("inner"), row.weight("shift", 1), row.pair("torus")
    expected(outer.shape[2] == b.shape[1] and len(outer) == len(b), "the matrices of a Sandwich convolution do not fit")
    inner = Fourier(row.inputs, torus, torus, math.sqrt(2) * b, shift)
    last = Fourier(inner.outputs, torus, row.pair("places"), math.sqrt(2) * outer, None)
    return Sandwich(inner, last, np.concatenate([outer.conj().swapaxes(1, 2), b], axis=2))


def _reflection(row: Row) -> Reflection:
    return Reflection(Linear(row.inputs, row.weight("u", 2), row.weight("shift", 1)))


def _reflection_convolution(row: Row) -> Reflection:
    return Reflection(row.convolution(row.weight("u", 4), row.weight("shift", 1)))


def _maximum(row: Row) -> Maximum:
    settings = row.pair("kernel"), row.pair("stride"), row.pair("before", 0), row.pair("dilation"), row.pair("places")
    return Maximum(row.inputs, *settings)


def _average(row: Row) -> Average:
    return Average(row.inputs, row.pair("kernel"), row.pair("stride"), row.ends(), number(row.get("divisor"), "divisor"))


def _fourier(row: Row) -> Fourier:
    return Fourier(row.inputs, row.pair("torus"), row.pair("places"), row.spectrum("matrices"), row.bias())


def _activation(kind: str, keys: tuple[str, ...]) -> Callable[[Row], Operation]:
    return lambda row: Activation(row.inputs, kind, row.numbers(*keys))


OPERATIONS: dict[str, Callable[[Row], Operation]] = {
    "linear": lambda row: Linear(row.inputs, row.weight("weight", 2), row.bias()),
    "convolution": lambda row: row.convolution(row.weight("weight", 4), row.bias()),
    "fourier": _fourier,
    "diagonal": lambda row: Diagonal(row.inputs, row.weight("center", 1), row.weight("scale", 1), row.weight("shift", 1)),
    "average": _average,
    "maximum": _maximum,
    "reshape": lambda row: Reshape(row.inputs, shape_of(row.row["outputs"])),
    "fit": lambda row: Fit(row.inputs, shape_of(row.row["outputs"])),
    "unshuffle": lambda row: Unshuffle(row.inputs, whole(row.get("block"), "block", 1)),
    "shuffle": lambda row: Shuffle(row.inputs, whole(row.get("block"), "block", 1)),
    "pad": lambda row: Pad(row.inputs, row.ends(-(2**20)), number(row.get("value"), "value")),
    "prelu": lambda row: Activation(row.inputs, "prelu", (), row.weight("weight", 1)),
    "maxmin": lambda row: MaxMin(row.inputs),
    "groupsort": lambda row: GroupSort(row.inputs, whole(row.get("group"), "group", 1)),
    "sandwich": _sandwich,
    "fourier_sandwich": _fourier_sandwich,
    "reflection": _reflection,
    "reflection_convolution": _reflection_convolution,
    "sum": lambda row: _branches(row, True),
    "concatenate": lambda row: _branches(row, False),
}
"""Every operation that a proof may contain, by name; the activations and their settings follow."""
ACTIVATIONS = {
    **dict.fromkeys(("relu", "tanh", "sigmoid", "selu", "hardswish", "softsign", "silu", "gelu"), ()),
    **dict.fromkeys(("leaky_relu", "elu"), ("slope",)),
    "celu": ("alpha",),
    "hardtanh": ("low", "high"),
    "softplus": ("beta",),
    "prelu": (),
}
for _kind, _keys in ACTIVATIONS.items():
    if _kind != "prelu":  # it has one slope per channel
        OPERATIONS[_kind] = _activation(_kind, _keys)
