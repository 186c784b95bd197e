"""The identity of a model is that of its function: a key of structure and tensors, and its logits on eight fixed images."""

import copy
import hashlib
import inspect
import json
from collections import OrderedDict
from collections.abc import Mapping
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from robustbench_rkhs.bounds.tracing import Holder, Recorder
from robustbench_rkhs.lipschitz.guard import HOOKS, foreign
from robustbench_rkhs.networks.smoothed import Smoothed
from robustbench_rkhs.nodes.code_names import code_name
from robustbench_rkhs.runtime.digests import weights_digest
from robustbench_rkhs.runtime.modes import evaluating
from robustbench_rkhs.runtime.precision import full_precision
from robustbench_rkhs.verifier.probes import fixed_images

SCHEME = 1
"""Raised whenever a model's key changes though its function does not."""
IDLE = frozenset({"num_batches_tracked"})
"""Tensors that no answer depends on."""
LARGE = 50_000_000
"""Numbers from which a network is asked in its own precision: a copy in float64 takes memory and time."""
DEPTH = 6
"""How deep values held by values are described."""


class Identity(NamedTuple):
    """Which function a model is."""

    key: str
    """sha256 of the structure (the traced graph, where it can be traced), tensors, normalisation and smoothing."""
    weights: str
    """sha256 of the tensors by their names. For information: the same tensors in another network are another model."""
    logits: tuple[tuple[float, ...], ...]
    """Answers to `fixed_images`; empty where the model takes no such images, or answers them by something not finite."""


def identity_of(model: nn.Module, shape: tuple[int, ...], asked: bool = True) -> Identity:
    """The identity of a model on images of `shape`; the model is left as it was. Not `asked`: without its answers, yet.

    Two models of one key are built alike of the same tensors. Names of modules play no part in a traced graph, nor does the device.
    Cost: tracing (without arithmetic), sha256 of the tensors twice, and eight images forward in float64.
    """
    return Identity(key_of(model), weights_digest(model.state_dict()), fixed_logits(model, shape) if asked else ())


def key_of(model: nn.Module) -> str:
    """The key alone."""
    with evaluating(model):
        described = {"scheme": SCHEME, "model": structure(model)}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


@torch.no_grad()
def fixed_logits(model: nn.Module, shape: tuple[int, ...]) -> tuple[tuple[float, ...], ...]:
    """Logits on the eight fixed images, in float64 on the CPU (in its own type where the model is large); of a smoothed model its
    base's."""
    base = model.base if isinstance(model, Smoothed) else model
    x = torch.from_numpy(fixed_images(shape))
    tensors = [*base.parameters(), *base.buffers()]
    small = sum(tensor.numel() for tensor in tensors) < LARGE
    own = next((tensor for tensor in tensors if tensor.is_floating_point()), x.float())
    found: Any = None
    with evaluating(base), full_precision(), torch.random.fork_rng(devices=[]):
        for double in (True, False) if small else (False,):
            try:
                asked = copy.deepcopy(base).to("cpu", torch.float64) if double else base
                found = torch.cat([asked(part if double else part.to(own)) for part in x.split(8 if small else 1)]).to("cpu")
                break
            except Exception:  # the model's own code, which may take no such images, or no float64
                continue
    if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != len(x) or not found.isfinite().all():
        return ()
    return tuple(map(tuple, found.double().tolist()))


def structure(module: nn.Module) -> Any:
    """What a module computes, as JSON: its graph where its forward can be traced, else its class, values, tensors and children."""
    if foreign(module) or isinstance(module, nn.Sequential):
        try:
            return _graph(module)
        except Exception:  # its forward branches on what it computes, or is not Python that a symbol passes through
            pass
    return _layer(module)


def _graph(module: nn.Module) -> list[Any]:
    """The operations in the order they run, each with what it reads by number. Raises what the forward raises on a symbol."""
    if any(_hooks(part) or "forward" in vars(part) for part in module.modules()):
        raise ValueError("it does more than its forward says")
    memo = {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())}
    twin, recorder = copy.deepcopy(module, memo), Recorder()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        graph = recorder.trace(Holder(twin))
    place: dict[fx.Node, int] = {}
    rows = []
    for node in graph.nodes:
        place[node] = len(place)
        what: Any = node.op if node.op in ("placeholder", "output") else _target(node, recorder.root)
        rows.append([what, _value([list(node.args), dict(node.kwargs)], place)])
    return rows


def _target(node: fx.Node, root: Any) -> Any:
    """What a node runs: a layer, a constant, a function or a method."""
    target = node.target
    if node.op == "call_module":
        return structure(root.get_submodule(str(target)))
    if node.op == "get_attr":
        held = root
        for name in str(target).split("."):
            held = getattr(held, name)
        return _value(held, {})
    return [node.op, target if isinstance(target, str) else code_name(target)]


def _layer(module: nn.Module) -> dict[str, Any]:
    """A module's class, what it was made with, its tensors, hooks and children."""
    held = {name: value for name, value in vars(module).items() if name in _made_with(module)}
    tensors = chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))
    found: dict[str, Any] = {
        "class": [code_name(kind) for kind in _classes(module)],
        "values": {name: _value(value, {}) for name, value in sorted(held.items())},
        "tensors": {name: _value(tensor, {}) for name, tensor in tensors if name not in IDLE},
    }
    hooks = _hooks(module)
    children = [[name, structure(child)] for name, child in module.named_children()]
    return found | ({"hooks": hooks} if hooks else {}) | ({"children": children} if children else {})


def _classes(module: nn.Module) -> list[type]:
    """The class; of a parametrized module, whose class is made up, also the one it had."""
    kind = type(module)
    return [kind, *kind.__bases__] if kind.__module__.startswith("torch.nn.utils") else [kind]


def _made_with(module: nn.Module) -> set[str]:
    """Names of the attributes that say how the module was made: all public ones of layers that are known; else those that its
    class is called with (others may be counters, which move)."""
    if not foreign(module):
        return {name for name in vars(module) if not name.startswith("_") and name not in ("training", "inplace")}
    names: set[str] = set()
    for kind in type(module).__mro__:
        if kind is not nn.Module and "__init__" in vars(kind):
            names |= set(inspect.signature(vars(kind)["__init__"]).parameters)
    return {name for name in vars(module) if name.lstrip("_") in names}


def _hooks(module: nn.Module) -> list[Any]:
    """What runs around the forward pass."""
    own = [vars(module)["forward"]] if "forward" in vars(module) else []
    return [_value(hook, {}) for name in HOOKS for hook in (getattr(module, name, None) or {}).values()] + [
        _value(one, {}) for one in own
    ]


def _value(value: Any, place: Mapping[fx.Node, int], depth: int = DEPTH) -> Any:
    """A value as JSON; an object that cannot be told is named by its class."""
    if isinstance(value, fx.Node):
        return {"node": place[value]}
    if isinstance(value, (bool, int, str)) or value is None:
        return value
    if isinstance(value, (float, complex)):
        return repr(value)
    if isinstance(value, Tensor):
        tensor = value.detach().cpu().contiguous()
        return [str(tensor.dtype), list(tensor.shape), hashlib.sha256(tensor.flatten().view(torch.uint8).numpy().data).hexdigest()]
    if depth == 0:
        return "..."
    if isinstance(value, nn.Module):
        return structure(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        parts = [_value(part, place, depth - 1) for part in value]
        return sorted(parts, key=repr) if isinstance(value, (set, frozenset)) else parts
    if isinstance(value, (dict, OrderedDict)):
        return {str(key): _value(part, place, depth - 1) for key, part in value.items()}
    if isinstance(value, slice):
        return ["slice", *(_value(part, place, depth - 1) for part in (value.start, value.stop, value.step))]
    if isinstance(value, (torch.dtype, torch.device, torch.memory_format)):
        return str(value)
    if inspect.isfunction(value) or inspect.ismethod(value):
        return _function(value, depth)
    return code_name(value if callable(value) and hasattr(value, "__qualname__") else type(value))


def _function(function: Any, depth: int) -> Any:
    """A Python function: its name, instructions, constants and what it has taken from around it."""
    code = function.__code__
    held = [cell.cell_contents for cell in function.__closure__ or () if not _is_empty(cell)]
    owner = getattr(function, "__self__", None)
    around = [*held, function.__defaults__, function.__kwdefaults__, owner if isinstance(owner, nn.Module) else type(owner)]
    constants = [one for one in code.co_consts if not inspect.iscode(one)]
    names = [code_name(function), code.co_code.hex(), list(code.co_names)]
    return [*names, _value(constants, {}, depth - 1), _value(around, {}, depth - 1)]


def _is_empty(cell: Any) -> bool:
    try:
        return cell.cell_contents is None
    except ValueError:
        return True
