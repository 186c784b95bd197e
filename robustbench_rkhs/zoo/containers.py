"""Containers: objects around a network that compute what the network computes, and the network inside of each."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.optim.swa_utils import AveragedModel

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import cause
from robustbench_rkhs.zoo.programs import is_exported, plain_program

INSIDE: dict[type, Callable[[Any], Any]] = {
    nn.DataParallel: lambda model: model.module,
    nn.parallel.DistributedDataParallel: lambda model: model.module,
    AveragedModel: lambda model: model.module,
    ExportedProgram: lambda program: plain_program(program.module()),
}
"""Containers by type, and the network that each computes."""
NAMED: dict[str, Callable[[Any], Any]] = {
    "OptimizedModule": lambda model: model._orig_mod,  # of torch.compile
    "ModelEma": lambda model: model.module,
    "ModelEmaV2": lambda model: model.module,
    "ModelEmaV3": lambda model: model.module,  # of timm, which need not be there
}
"""Containers of libraries that are not imported here, by the name of their class."""
LIBRARIES = ("torch.", "timm.")
"""Where a class of such a name has its library's forward."""
HOOKS: dict[type, Callable[[Any, nn.Module], Tensor]] = {
    SpectralNorm: lambda hook, layer: hook.compute_weight(layer, do_power_iteration=False),
    WeightNorm: lambda hook, layer: hook.compute_weight(layer),
    BasePruningMethod: lambda hook, layer: hook.apply_mask(layer),
}
"""Hooks of torch that set a weight before each forward pass, and that weight in eval mode."""
SOURCES: dict[type, tuple[str, ...]] = {
    SpectralNorm: ("_orig", "_u", "_v"),
    WeightNorm: ("_g", "_v"),
    BasePruningMethod: ("_orig", "_mask"),
}
"""How the tensors that such a weight is computed of are named after it."""


def inside(model: Any) -> Any:
    """The network inside a container, itself perhaps one; None for anything else, and for one that computes something besides."""
    for kind, read in INSIDE.items():
        if isinstance(model, kind):
            return read(model) if _adds_nothing(model, kind) else None
    if type(model).__name__ in NAMED and isinstance(model, nn.Module) and not _hooked(model):
        known = type(model).__module__.startswith(LIBRARIES) or type(model).forward is nn.Module.forward
        return NAMED[type(model).__name__](model) if known else None
    if isinstance(model, nn.Module):
        return plain_program(model) if is_exported(model) else None
    return getattr(model, "_torchdynamo_orig_callable", None)  # a compiled function


def _adds_nothing(model: Any, kind: type) -> bool:
    """Whether a container is used as its library made it: no forward of its own, no hooks on it."""
    if not isinstance(model, nn.Module):
        return True
    own = type(model).forward is not kind.forward or type(model).__call__ is not kind.__call__ or "forward" in vars(model)  # type: ignore[attr-defined]
    return not own and not _hooked(model)


def _hooked(model: nn.Module) -> bool:
    return bool(model._forward_hooks or model._forward_pre_hooks)


def unwrapped(model: Any) -> tuple[Any, list[str]]:
    """The network inside the containers around it, and their names, the outermost first."""
    names = []
    while (found := inside(model)) is not None:
        names.append(_title(model))
        model = found
    return model, names


def unpacked(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """The model without containers, at any depth, and with every hooked weight computed; and what was taken away.

    The model itself where it has none. Otherwise a copy that shares all other tensors with it, and gives the same outputs in eval
    mode to the last bit (an exported program: up to rounding, which is checked). Raises UserError where it can't be copied.
    """
    model, names = unwrapped(model)
    parts = list(model.modules()) if isinstance(model, nn.Module) else []
    nested = [part for part in parts if inside(part) is not None]
    hooked = [part for part in parts if _setters(part)]
    compiled = [part for part in parts if getattr(part, "_compiled_call_impl", None) is not None]
    if not (nested or hooked or compiled):
        return model, names
    memo: dict[int, Any] = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    try:
        with torch.inference_mode(False), torch.no_grad():
            for part in hooked:  # a computed weight is no leaf, which deepcopy refuses
                for stale in filter(lambda one: isinstance(one, Tensor), vars(part).values()):
                    memo[id(stale)] = stale.detach().clone()
            for part in reversed(nested):  # what they contain comes later in `parts`
                memo[id(part)] = copy.deepcopy(unwrapped(part)[0], memo)
            twin = copy.deepcopy(model, memo)
            for part in hooked:
                _fix(memo[id(part)])
    except UserError:
        raise
    except Exception as error:  # an own class, which may hold what can't be copied
        raise UserError(
            f"the model holds {_title(nested[0] if nested else parts[0])}, and can't be copied: {cause(error)}"
        ) from None
    found = [*names, *map(_title, nested), *(type(hook).__name__ for part in hooked for hook in _setters(part))]
    return twin, [*dict.fromkeys(found), *(["torch.compile"] if compiled else [])]


def _title(model: Any) -> str:
    return "torch.compile" if type(model).__name__ in ("OptimizedModule", "function") else type(model).__name__


def _sets_weights(hook: Any) -> Callable[[Any, nn.Module], Tensor] | None:
    return next((compute for kind, compute in HOOKS.items() if isinstance(hook, kind)), None)


def _target(hook: Any) -> str:
    """The name of the weight that a hook sets."""
    return str(getattr(hook, "_tensor_name", None) or hook.name)


def _setters(layer: nn.Module) -> list[Any]:
    return [hook for hook in layer._forward_pre_hooks.values() if _sets_weights(hook) is not None]


def _fix(layer: nn.Module) -> None:
    """Compute every weight that a hook sets, in their order, and keep it as a plain parameter instead of hook and sources."""
    names, sources = list[str](), set[str]()
    for key, hook in list(layer._forward_pre_hooks.items()):
        compute = _sets_weights(hook)
        if compute is None:
            continue
        name = _target(hook)
        vars(layer)[name] = compute(hook, layer).detach().clone()  # a later hook may read it
        names.append(name)
        sources |= {name + ending for kind, endings in SOURCES.items() if isinstance(hook, kind) for ending in endings}
        for hooks in (layer._forward_pre_hooks, layer._forward_pre_hooks_with_kwargs):
            hooks.pop(key, None)
    for hooks in (layer._state_dict_hooks, layer._load_state_dict_pre_hooks):
        for key in [key for key, hook in hooks.items() if "SpectralNorm" in type(getattr(hook, "hook", hook)).__name__]:
            del hooks[key]
    for name in sources:
        for held in (vars(layer), layer._parameters, layer._buffers):
            held.pop(name, None)
    for name in dict.fromkeys(names):
        if name not in sources:
            layer.register_parameter(name, nn.Parameter(vars(layer).pop(name), requires_grad=False))
