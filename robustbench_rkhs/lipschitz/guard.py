"""Checks that a module runs exactly the code for which its rule was proved."""

from collections.abc import Iterator
from functools import singledispatch

import torch
from torch import Tensor, nn
from torch.nn.modules import module as internals
from torch.nn.utils import parametrize

from robustbench_rkhs.lipschitz.bounds import Uncertifiable, rule
from robustbench_rkhs.runtime.modes import advice

HARMLESS = frozenset(
    "__module__ __qualname__ __doc__ __init__ __annotations__ __dict__ __weakref__ __repr__ __constants__ "
    "__parameters__ __orig_bases__ __firstlineno__ __static_attributes__ __annotate__ __annotate_func__ "
    "__annotations_cache__ __getstate__ __deepcopy__ extra_repr reset_parameters".split()
)
"""Names that a subclass may override without changing its forward pass."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def leaves(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Dotted path and layer, in the order they run; nested nn.Sequential are flattened.

    Raises Uncertifiable where a layer has no rule, overrides code of the class the rule is for, or has hooks.
    """
    try:
        kind = _check(module)
    except Uncertifiable as refused:
        raise Uncertifiable(f"{named(path, module)}: {refused}") from None
    if kind is not nn.Sequential:
        yield path, module
        return
    for name, child in module._modules.items():
        if child is None:
            raise Uncertifiable(f"{named(path, module)}: its entry {name!r} is None")
        yield from leaves(child, f"{path}.{name}" if path else name)


def unruled(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module, str]]:
    """Everything in a chain that `leaves` refuses (it stops at the first): dotted path, layer, reason."""
    try:
        kind = _check(module)
    except Uncertifiable as refused:
        yield path, module, str(refused)
        return
    for name, child in module._modules.items() if kind is nn.Sequential else ():
        if child is None:
            yield path, module, f"its entry {name!r} is None"
        else:
            yield from unruled(child, f"{path}.{name}" if path else name)


@singledispatch
def branches(module: nn.Module) -> list[nn.Module]:
    """The branches whose outputs a layer adds; none for most layers. Each is checked and bounded as a separate model."""
    return []


@singledispatch
def gathered(module: nn.Module, parts: list[Tensor]) -> Tensor:
    """Combines the outputs of a layer's branches: their sum, unless its type registers another rule."""
    return torch.stack(parts).sum(0)


def every(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """`leaves`, each followed by the leaves of its branches. Raises Uncertifiable as `leaves` does."""
    for at, layer in leaves(module, path):
        yield at, layer
        for number, branch in enumerate(branches(layer)):
            yield from every(branch, f"{at}.branch{number}")


def named(path: str, module: nn.Module) -> str:
    """A module as named in a refusal."""
    return f"no proven Lipschitz bound for {path or 'the model'} ({type(module).__name__})"


def _check(module: nn.Module) -> type:
    """The class that the rule is registered for, after checking that the module runs the code of that class."""
    known = rule.registry.keys() - {object} | {nn.Sequential}
    kind = next((parent for parent in type(module).__mro__ if parent in known), None)
    if kind is None:
        raise Uncertifiable("no rule for this type of layer")
    for parent in type(module).__mro__:
        if parent in kind.__mro__:
            continue
        changed = sorted(name for name in vars(parent) if hasattr(kind, name) and name not in HARMLESS)
        if changed:
            raise Uncertifiable(f"{parent.__name__} overrides {', '.join(changed)} of {kind.__name__}, which the rule is for")
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            raise Uncertifiable(f"{name} is a plain tensor, neither a parameter nor a buffer")
    intact(module, kind)
    if parametrize.is_parametrized(module):
        _check_parametrized(module)
    return kind


def intact(module: nn.Module, kind: type) -> None:
    """Raises Uncertifiable where the instance runs other code than its class, has hooks, or has complex weights."""
    for name, value in vars(module).items():
        if callable(getattr(kind, name, None)) or (name == "_compiled_call_impl" and value is not None):
            raise Uncertifiable(f"this instance replaces {name}, which the rule relies on")
    if any(tensor.is_complex() for tensor in [*module.parameters(), *module.buffers()]):
        raise Uncertifiable("expected real weights, found complex ones")
    if any(getattr(module, hooks, None) for hooks in HOOKS):
        raise Uncertifiable("it carries hooks (old-style weight_norm, spectral_norm and pruning do), which no rule covers")
    if internals._global_forward_hooks or internals._global_forward_pre_hooks or internals._global_backward_hooks:
        raise Uncertifiable("hooks on all modules are installed, which no rule covers")


def known(module: nn.Module) -> bool:
    """Whether a class of the module has a rule."""
    return any(parent in rule.registry for parent in type(module).__mro__ if parent is not object)


def foreign(module: nn.Module) -> bool:
    """Whether the module must be traced to be understood: neither a layer with a rule nor one of torch.nn."""
    if known(module):
        return False
    if isinstance(module, nn.Sequential):
        return type(module).forward is not nn.Sequential.forward
    return not type(module).__module__.startswith("torch.nn.")


def parts(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Dotted path and module, containers before their contents; layers with a rule or from torch.nn are not opened."""
    yield path, module
    if foreign(module) or isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        for name, child in module._modules.items():
            if child is not None:
                yield from parts(child, f"{path}.{name}" if path else name)


def _check_parametrized(module: nn.Module) -> None:
    """A parametrized weight counts as its evaluated value, which must be deterministic."""
    if any(part.training for part in module.modules()):
        held = next(part for part in module.modules() if part.training)
        raise Uncertifiable(f"it is parametrized and in training mode, where its weight may change: {advice(held)}")
    if parametrize._cache_enabled:
        raise Uncertifiable("parametrize.cached() is on, which can return a stale weight")
    for name in module.parametrizations:  # type: ignore[union-attr]
        with torch.no_grad():
            once, twice = getattr(module, name), getattr(module, name)
        if not torch.equal(once, twice) and not once.isnan().any():
            raise Uncertifiable(f"its parametrized {name} changes from one reading to the next")
