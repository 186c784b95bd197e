"""A model as a chain of layers, with or without rules, and products of their Lipschitz factors."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from robustbench_rkhs.bounds import Step, steps, upper
from robustbench_rkhs.layers.lowered import plain
from robustbench_rkhs.lipschitz import Uncertifiable, affine, rule
from robustbench_rkhs.nodes.node import UserError


class Part(NamedTuple):
    """A layer of the model: a float64 copy on the CPU in eval mode."""

    path: str
    module: nn.Module
    inputs: tuple[int, ...]
    """Input shape without the batch dimension."""
    outputs: tuple[int, ...]
    proven: float | None
    """Proven Lipschitz bound; None without a rule."""
    branches: tuple[list["Part"], ...] = ()
    """The branches whose outputs it adds, if any."""


Factor = Callable[[Part], float | None]
"""A mistake's replacement for the proven bound of a layer; None: keep the bound."""


def copied(module: nn.Module) -> nn.Module:
    """A deep copy, also of modules that store computed tensors (as old-style spectral_norm does)."""
    kept = [value for part in module.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    return copy.deepcopy(module, {id(value): value.detach().clone() for value in kept})


def doubled(model: nn.Module) -> nn.Module:
    """A float64 copy on the CPU in eval mode, including tensors that are neither parameter nor buffer (constants, caches)."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise UserError("a TorchScript module has no separate layers: expected the original network")
    twin = copied(model).to("cpu", torch.float64).eval().requires_grad_(False)
    for module in twin.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor) and value.is_floating_point():
                setattr(module, name, value.to("cpu", torch.float64))
    return twin


def parts(model: nn.Module, shape: tuple[int, ...]) -> tuple[list[Part], str]:
    """The layers in the order they run, and why nothing is proved for the whole model (empty if it is).

    For a model with a part without a rule, the layers that ran on an image of zeros; other operations in forward passes
    (sums, functional calls, further parameters) are not included.
    """
    twin = doubled(model)
    try:
        return [_of(step) for step in steps(twin, shape)], ""
    except Uncertifiable as refused:
        return _seen(twin, shape), str(refused)


def _of(step: Step) -> Part:
    branches = tuple([_of(inner) for inner in branch] for branch in step.branches)
    return Part(step.path, step.module, step.inputs, step.bound.shape, step.bound.value, branches)


def _seen(twin: nn.Module, shape: tuple[int, ...]) -> list[Part]:
    calls: list[tuple[str, nn.Module, tuple[int, ...], tuple[int, ...]]] = []

    def watch(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
            if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                calls.append((path, module, tuple(inputs[0].shape[1:]), tuple(output.shape[1:])))

        return hook

    hooks = [layer.register_forward_hook(watch(path)) for path, layer in leaves(twin)]
    try:
        with torch.no_grad():
            twin(torch.zeros(1, *shape, dtype=torch.float64))
    finally:
        for hook in hooks:
            hook.remove()
    return [Part(path, layer, inputs, outputs, _proven(layer, inputs)) for path, layer, inputs, outputs in calls]


def leaves(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Layers that have a rule or no children: the parts of a model without a proof."""
    ruled = rule.dispatch(type(module)) is not rule.dispatch(object)
    if type(module) is not nn.Sequential and (ruled or not list(module.children())):
        yield path, module
        return
    for name, child in module.named_children():
        yield from leaves(child, f"{path}.{name}" if path else name)


def _proven(layer: nn.Module, shape: tuple[int, ...]) -> float | None:
    try:
        return upper(layer, shape).value
    except Uncertifiable:
        return None


def weighted(part: Part) -> bool:
    """Whether a layer is affine with a weight matrix or kernel."""
    return affine(part.module) and any(tensor.dim() >= 2 for tensor in part.module.parameters())


def chained(chain: list[Part], factor: Factor) -> float:
    """Product of the layers' factors, with sums over branches; a layer without a bound counts as 1."""
    total = 1.0
    for part in chain:
        own = factor(part)
        if own is None and part.branches:
            own = math.fsum(chained(branch, factor) for branch in part.branches)
        total *= own if own is not None else 1.0 if part.proven is None else part.proven
    return total


def head(chain: list[Part], classes: int) -> int:
    """Index of the last layer with weights, if all layers after it are affine and give the logits; else the length."""
    if chain and chain[-1].outputs == (classes,):
        for place in range(len(chain) - 1, -1, -1):
            if not affine(chain[place].module):
                break
            if weighted(chain[place]):
                return place
    return len(chain)


def rows(chain: list[Part], classes: int) -> Float64[Tensor, "classes inputs"]:
    """The matrix of a chain of affine layers, by vector-Jacobian products."""
    x = torch.zeros(classes, *chain[0].inputs, dtype=torch.float64, requires_grad=True)
    y = x
    with torch.enable_grad():
        for part in chain:
            y = plain(part.module)(y)
        (matrix,) = torch.autograd.grad(y, x, torch.eye(classes, dtype=torch.float64))
    return matrix.flatten(1)


def pairwise(chain: list[Part], classes: int, factor: Factor = lambda part: None) -> Float64[Tensor, "classes classes"]:
    r"""The bounds of f_y - f_j that a product of factors gives.

    .. math:: L_{yj} = \prod_{k < K} L_k \, \lVert w_y - w_j \rVert_2

    W: the exact matrix of the last layer with weights; without one, sqrt(2) times the whole product. With the proven bounds as
    factors it is proved; consecutive affine layers are not merged, as published products do not.
    """
    place = head(chain, classes)
    if place == len(chain):
        return math.sqrt(2) * chained(chain, factor) * (1 - torch.eye(classes, dtype=torch.float64))
    matrix = rows(chain[place:], classes)
    result: Tensor = chained(chain[:place], factor) * (matrix[:, None] - matrix).norm(dim=2)
    return result


class Linearised:
    """The Jacobian of a module at each image of a batch, applied to one direction per image, and its adjoint."""

    def __init__(self, module: nn.Module, x: Float64[Tensor, "batch *inputs"]) -> None:
        with torch.inference_mode(False), torch.enable_grad():
            self.x = x.detach().clone().requires_grad_()
            self.y = plain(module)(self.x * 1)  # a layer may work in place
            self.v = torch.zeros_like(self.y, requires_grad=True)
            constant = not self.y.requires_grad
            self.pulled = None if constant else self._grad(self.y, self.x, self.v, create_graph=True)

    def forward(self, direction: Tensor) -> Tensor:
        """J d: the adjoint of the vector-Jacobian product, which is linear."""
        if self.pulled is None or not self.pulled.requires_grad:
            return torch.zeros_like(self.y)
        return self._grad(self.pulled, self.v, direction)

    def adjoint(self, direction: Tensor) -> Tensor:
        """J^T d."""
        return torch.zeros_like(self.x) if self.pulled is None else self._grad(self.y, self.x, direction)

    @staticmethod
    def _grad(of: Tensor, by: Tensor, along: Tensor, create_graph: bool = False) -> Tensor:
        (found,) = torch.autograd.grad(of, by, along, retain_graph=True, create_graph=create_graph, allow_unused=True)
        return torch.zeros_like(by) if found is None else found


def power(jacobian: Linearised, start: Float64[Tensor, "batch *inputs"], iterations: int) -> Float64[Tensor, " batch"]:
    """||J v|| after this many steps v <- J^T J v / ||J^T J v||: a lower bound of the norm for any start."""
    v = _unit(start)
    for _ in range(iterations):
        v = _unit(jacobian.adjoint(jacobian.forward(v)))
    result: Tensor = jacobian.forward(v).flatten(1).norm(dim=1)
    return result


def _unit(x: Tensor) -> Tensor:
    length = x.flatten(1).norm(dim=1).view(-1, *[1] * (x.dim() - 1))
    return x / torch.where(length > 0, length, 1)
