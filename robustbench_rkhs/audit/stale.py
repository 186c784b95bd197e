"""Detection of stale caches of old weights, by changing the weights of a copy."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_rkhs.audit.factors import copied


def stale_layers(model: nn.Module, x: Tensor) -> list[str]:
    """Paths of the modules whose output in eval mode stays the same when all their weights change after a forward pass.

    A copy runs once, its weights are changed, and it runs again; a fresh copy without its plain tensors gets the same weights
    before its first run. Stale: the two differ, or the output did not change at all. The innermost modules are named.
    """
    found: list[str] = []
    calls = _inputs(copied(model).eval(), x)
    for path, module in model.named_modules():
        floats = [p for p in module.parameters() if p.is_floating_point()]
        if path not in calls or not floats or type(module) is nn.Sequential:
            continue
        used = copied(module).eval()
        with torch.no_grad():
            before = used(calls[path].clone())
            after, answer = _changed(used)(calls[path].clone()), _first(_changed(_emptied(module)), calls[path].clone())
        if not isinstance(before, Tensor):
            continue
        unmoved = torch.equal(before, after) and bool(before.any())
        if unmoved or (answer is not None and not torch.allclose(after, answer, rtol=1e-3, atol=1e-5)):
            found.append(path)
    inner = [
        path for path in found if not any(other != path and f"{other}.".startswith(f"{path}." if path else "") for other in found)
    ]
    return [path or "the model" for path in inner]


def _changed(module: nn.Module) -> nn.Module:
    for tensor in module.parameters():
        if tensor.is_floating_point():
            tensor.mul_(-0.7).add_(0.1)
    return module


def _emptied(module: nn.Module) -> nn.Module:
    """A copy in eval mode without its plain tensors, where caches are kept."""
    fresh = copied(module).train().eval()
    for part in fresh.modules():
        for name, value in list(vars(part).items()):
            if isinstance(value, Tensor):
                setattr(part, name, None)
    return fresh


def _first(module: nn.Module, x: Tensor) -> Tensor | None:
    """Its output; None where it cannot run without the dropped tensors."""
    try:
        answer: Tensor = module(x)
    except Exception:  # foreign code, run without its plain tensors
        return None
    return answer


def _inputs(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The input of each module, by its path."""
    found: dict[str, Tensor] = {}

    def watch(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if len(inputs) == 1 and isinstance(inputs[0], Tensor):
                found[path] = inputs[0].detach().clone()

        return hook

    for path, module in model.named_modules():
        module.register_forward_pre_hook(watch(path))
    with torch.no_grad():
        model(x)
    return found
