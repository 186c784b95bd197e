"""Checks of a layer with a proven Lipschitz bound, against the dense Jacobian."""

from collections.abc import Callable
from math import prod

import torch
from torch import nn

from robustbench_rkhs.bounds import steps, upper
from robustbench_rkhs.layers.frozen import freeze
from robustbench_rkhs.testing.must import must


def check_layer(build: Callable[[], nn.Module], shape: tuple[int, ...], close: float = 0.0) -> None:
    """All checks of the layer that `build()` returns, on inputs of `shape` without the batch dimension.

    `close`: tolerance between its outputs in train mode and in eval mode.
    """
    for seed in range(3):
        jacobian_is_under_the_bound(build, shape, seed)
    state_goes_round(build, shape, close)
    frozen_is_the_same_function(build, shape)
    gradients_are_finite(build, shape)


def disturbed(build: Callable[[], nn.Module], seed: int, size: float = 1.0) -> nn.Module:
    """The layer with every parameter moved far from its initial value."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = build()
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(torch.randn_like(parameter) * size)
    return layer


def steepest(layer: nn.Module, shape: tuple[int, ...], images: int = 6, scale: float = 1.0) -> float:
    """Largest singular value of the dense Jacobian over random inputs, in float64. Converts the layer to float64."""
    layer = layer.double()
    norms: list[float] = []
    for x in torch.randn(images, 1, *shape, dtype=torch.float64) * scale:
        jacobian = torch.autograd.functional.jacobian(layer, x)
        norms.append(float(torch.linalg.matrix_norm(jacobian.reshape(-1, prod(shape)), ord=2)))
    return max(norms)


def jacobian_is_under_the_bound(build: Callable[[], nn.Module], shape: tuple[int, ...], seed: int = 0) -> None:
    """At disturbed parameters the Jacobian's norm is at most the proven bound, whose output shape is right."""
    layer = disturbed(build, seed)
    bound, found = upper(layer, shape), steepest(layer, shape)
    must(found <= bound.value * (1 + 1e-13), f"the Jacobian has norm {found:.9g}, above the bound {bound.value:.9g}")
    shaped = layer(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:]
    must(shaped == bound.shape, f"the bound states output shape {bound.shape}, found {tuple(shaped)}")
    alone = steps(layer, shape)[0].bound  # the rule, not the dense matrix that `upper` takes for small affine layers
    must(bound.value <= alone.value * (1 + 1e-9), f"the layer's own rule says {alone.value:.9g}, below the exact {bound.value:.9g}")


def state_goes_round(build: Callable[[], nn.Module], shape: tuple[int, ...], close: float = 0.0) -> None:
    """All parameters exist after construction; loading its state into another instance gives the same function in both modes."""
    layer, x = disturbed(build, 0), torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    names, y = set(layer.state_dict()), layer(x)
    must(set(layer.state_dict()) == names, "parameters and buffers must exist after __init__, found others after a forward pass")
    must(y.dtype == x.dtype and bool(y.isfinite().all()), f"expected finite outputs of {x.dtype}, found {y.dtype}")
    twin = disturbed(build, 1)
    twin(x)  # nothing of the first weights may linger
    twin.load_state_dict(layer.state_dict())
    torch.testing.assert_close(twin.eval()(x), layer.train()(x), rtol=close, atol=close)


def frozen_is_the_same_function(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    """The frozen layer (weights computed once for evaluation) is the same function up to 1e-6."""
    layer, x = nn.Sequential(disturbed(build, 0)).eval(), torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(freeze(layer)(x), layer(x), rtol=1e-6, atol=1e-6)


def gradients_are_finite(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    """A finite gradient reaches every parameter."""
    layer = disturbed(build, 0, 0.5)
    if not list(layer.parameters()):
        return
    layer(torch.randn(64, *shape, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    for name, parameter in layer.named_parameters():
        must(parameter.grad is not None and bool(parameter.grad.isfinite().all()), f"expected a finite gradient of {name!r}")
