"""Adapters for third-party attacks: objects of foolbox and torchattacks, and plain functions (model, x, y) -> images."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from robustbench_rkhs.attacks.ball import per_image
from robustbench_rkhs.attacks.base import Attack, Attacked, unstarted
from robustbench_rkhs.attacks.foolbox import bounds_of, quiet
from robustbench_rkhs.attacks.library_model import Counted, confined_randomness, counting, searched
from robustbench_rkhs.nodes.code_names import code_name
from robustbench_rkhs.nodes.node import Node, UserError, real
from robustbench_rkhs.nodes.own_code import described, source_digest
from robustbench_rkhs.nodes.threat_model import Norm
from robustbench_rkhs.runtime.clock import OutOfTime
from robustbench_rkhs.runtime.counter_rng import mix


class ForeignAttack(Attack):
    """A third-party attack at a budget. It gets the model frozen, in eval mode, with every pass counted.

    It gets the images that the model classifies correctly. The images that it returns are projected into ball and box and
    classified again, as for every attack; those that are not finite are dropped. The global random generators are seeded for it and
    restored afterwards.
    """

    title: str
    """The name in tables."""
    described: Any = None
    """What it is, with its settings: part of the cache key of its rows."""
    source: str = ""
    """Digest of its source files."""
    named: dict[str, Any] | None = None
    """Its name in the recipe; None where an object was passed."""
    held: Any = Field(exclude=True, repr=False)
    """The object itself."""

    @property
    def label(self) -> str:
        return self.title

    def written(self) -> dict[str, Any]:
        """As written in a recipe. An object that was passed can be described, but not be loaded again."""
        return dict(self.named) if self.named else {"name": self.title, "described": self.described}

    def aimed(self, *, norm: Norm, eps: float | None, seed: int) -> Attack:
        own = _norm(self.held)
        if own not in (None, norm):
            raise UserError(f"attack {self.title!r} measures in {own}, the evaluation in {norm}: take its {norm} version")
        return super().aimed(norm=norm, eps=eps, seed=seed)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, keys: Tensor) -> Attacked:
        eps = None if self.minimal_norm else self.budget()
        images = x.clone()
        with counting(model, x) as counted, confined_randomness(mix(self.seed, *keys.tolist())):

            def search(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
                found = self.run(counted, x.clone(), y.clone(), eps)
                if not isinstance(found, Tensor) or found.shape != x.shape:
                    what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                    raise ValueError(f"expected images of shape {tuple(x.shape)}, found {what}")
                found = found.detach().to(x)
                return found, found.flatten(1).isfinite().all(1)

            try:
                right = counted.standing(x, y)
            except OutOfTime:
                return unstarted(x)
            done = searched(counted, x[right], y[right], self.norm, eps, search)
            images[right] = torch.where(per_image(done.fell, done.images), done.images, x[right])
            return Attacked(images, *counted.spent(right), finished=done.finished)

    def run(self, counted: Counted, x: Tensor, y: Tensor, eps: float | None) -> Any:
        """The images that it returns for these."""
        if _is_of(self.held, "foolbox"):
            return self._foolbox(counted, x, y, eps)
        if is_torchattack(self.held):
            with _lent(self.held, counted, x.device, eps), torch.enable_grad():
                return self.held(x, y)
        known = {"eps": eps, "norm": self.norm}
        wanted = {name: known[name] for name in known if name in _parameters(self.held)}
        with torch.enable_grad():
            return self.held(counted, x, y, **wanted)

    def _foolbox(self, counted: Counted, x: Tensor, y: Tensor, eps: float | None) -> Any:
        import foolbox  # imported here: it takes a second

        with quiet():
            net = foolbox.models.pytorch.PyTorchModel(counted, bounds=bounds_of(x, self.box), device=x.device)
            found, _, _ = self.held(net, x, foolbox.criteria.Misclassification(y), epsilons=eps)
        return found


class ForeignMinimalAttack(ForeignAttack):
    """A third-party attack without a budget: it runs once, and its images count at the distance at which they lie."""

    minimal_norm: ClassVar[bool] = True


def foreign_attack(found: Any, name: str, fields: dict[str, Any]) -> Node | None:
    """The node for a third-party attack: an object, or what a name of code with fields refers to. None if it is not an attack."""
    other = (nn.Module, Tensor, Node, str)  # called for something else than an attack: networks, losses, penalties ...
    if isinstance(found, other) or (isinstance(found, type) and issubclass(found, other)) or not callable(found):
        return None
    fields = {key: real(value) for key, value in fields.items()}
    held = found
    if isinstance(found, type):
        placeholder = [nn.Linear(1, 1)] if _is_of(found, "torchattacks") else []  # its model is set at each call
        held = _made(name, functools.partial(found, *placeholder, **fields))
        if isinstance(held, nn.Module) or not callable(held):
            return None
    elif fields:
        held = functools.partial(found, **fields)
    kind = found if isinstance(found, type) or inspect.isfunction(found) else type(found)
    room = kind.__module__.partition(".")[0] if _is_of(held, "foolbox") or is_torchattack(held) else kind.__module__
    told = {key: value for key, value in vars(held).items() if key not in ("model", "device")} if is_torchattack(held) else held
    node = ForeignAttack if _bounded(held) else ForeignMinimalAttack
    return node(
        title=f"{room}.{kind.__name__}",
        described=described([code_name(kind), told]),
        source=source_digest(kind),
        named={"name": name, **fields} if name else None,
        held=held,
    )


def is_torchattack(held: Any) -> bool:
    """Whether this looks like an attack of torchattacks: a callable (images, labels) that holds its model."""
    return callable(held) and not isinstance(held, type) and hasattr(held, "set_mode_default") and hasattr(held, "model")


def _made(name: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except Exception as error:  # third-party code may raise anything
        raise UserError(f"{name}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}") from None


def _is_of(held: Any, library: str) -> bool:
    kind = held if isinstance(held, type) else type(held)
    return any(one.__module__.partition(".")[0] == library for one in kind.__mro__)


def _bounded(held: Any) -> bool:
    """Whether it takes a budget."""
    if _is_of(held, "foolbox"):
        inner = getattr(held, "attack", held)  # of a repeated attack
        return not any(one.__name__ == "MinimizationAttack" for one in type(inner).__mro__)
    return any(hasattr(one, "eps") for one in _members(held)) if is_torchattack(held) else "eps" in _parameters(held)


def _norm(held: Any) -> Norm | None:
    """The norm in which it measures, if it says so."""
    try:
        said = held.distance.p if _is_of(held, "foolbox") else str(getattr(held, "norm", "")).lower()
    except Exception:  # foolbox raises where none was chosen
        return None
    known: dict[Any, Norm] = {"l2": "l2", 2: "l2", "linf": "linf", float("inf"): "linf"}
    return known.get(said)


def _parameters(call: Any) -> frozenset[str]:
    try:
        return frozenset(inspect.signature(call).parameters)
    except (TypeError, ValueError):
        return frozenset()


def _members(held: Any) -> Iterator[Any]:
    """An attack of torchattacks and the attacks that it consists of."""
    yield held
    for one in dict(vars(held).get("_attacks") or {}).values():
        yield from _members(one)


@contextmanager
def _lent(held: Any, counted: Counted, device: torch.device, eps: float | None) -> Iterator[None]:
    """An attack of torchattacks with our model and budget, its step scaled along; restored afterwards."""
    before = [
        (one, {key: vars(one)[key] for key in ("model", "device", "eps", "alpha") if key in vars(one)}) for one in _members(held)
    ]
    try:
        for one, was in before:
            one.model = counted
            if "device" in was:
                one.device = device
            if eps is not None and "eps" in was:
                one.eps = eps
                if isinstance(was.get("alpha"), (int, float)) and was["eps"]:
                    one.alpha = was["alpha"] * eps / was["eps"]
        yield
    finally:
        for one, was in before:
            for key, value in was.items():
                setattr(one, key, value)
