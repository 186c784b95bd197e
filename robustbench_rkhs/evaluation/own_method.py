"""Guards for users' own methods: the model must stay unchanged, and results must have the expected form."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from robustbench_rkhs.attacks.base import Attack, Attacked
from robustbench_rkhs.attacks.foreign import ForeignAttack
from robustbench_rkhs.attacks.library_model import frozen
from robustbench_rkhs.certificates.base import FURTHEST, Certified
from robustbench_rkhs.nodes.code_names import is_ours
from robustbench_rkhs.nodes.node import Node
from robustbench_rkhs.runtime.clock import ask

REASONS = ("", "unknown", "timeout", "refused", "error")


@contextmanager
def fenced(method: Node, model: nn.Module) -> Iterator[None]:
    """Runs a user's own method with frozen weights; raises ValueError if it changed them, after restoring them.

    Its attacks check the clock whenever they query the model: OutOfTime passes through them.
    """
    if is_ours(type(method)) and not isinstance(method, ForeignAttack):
        yield
        return
    asking = model.register_forward_pre_hook(lambda *_: ask()) if isinstance(method, Attack) else None
    try:
        with _unchanged(model):
            yield
    finally:
        if asking is not None:
            asking.remove()


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    with frozen(model):
        yield
    changed = [name for name, tensor in tensors.items() if not torch.equal(tensor, before[name])]
    if changed:
        with torch.no_grad():
            for name in changed:
                tensors[name].copy_(before[name])
        raise ValueError(f"it changed the model's {changed[0]!r}, which was put back")


def checked_attacked(found: object, x: Tensor) -> Attacked:
    """The result of an attack, checked. Raises ValueError where it is not an `Attacked` for these images."""
    if not isinstance(found, Attacked):
        raise ValueError(f"expected Attacked(images, forwards, backwards), found {type(found).__name__}")
    if found.images.shape != x.shape:
        raise ValueError(f"expected images of shape {tuple(x.shape)}, found {tuple(found.images.shape)}")
    for name in ("forwards", "backwards"):
        counts = getattr(found, name)
        if counts.shape != (len(x),) or counts.is_floating_point() or (len(x) and int(counts.min()) < 0):
            raise ValueError(
                f"expected {name} as a whole number for each of {len(x)} images, found {tuple(counts.shape)} {counts.dtype}"
            )
    return found


def checked_certified(found: object, images: int) -> Certified:
    """The result of a certificate, its radii at most FURTHEST. Raises ValueError where it is not a `Certified` for these images."""
    if not isinstance(found, Certified):
        raise ValueError(f"expected Certified(radius, reason, failure_probability), found {type(found).__name__}")
    if found.radius.shape != (images,) or len(found.reason) != images or found.failure_probability.shape != (images,):
        raise ValueError(f"expected a radius, a reason and a failure probability for each of {images} images")
    if found.radius.dtype != torch.float64 or not bool((found.radius >= 0).all()):  # NaN is not
        raise ValueError(f"expected radii as float64 from 0, found {found.radius.dtype} from {found.radius.min():.4g}")
    if not bool(((found.failure_probability >= 0) & (found.failure_probability <= 1)).all()):
        raise ValueError("expected failure probabilities from 0 to 1")
    unknown = [reason for reason in found.reason if reason not in REASONS]
    if unknown:
        raise ValueError(f"expected reasons among {', '.join(REASONS[1:])} or none, found {unknown[0]!r}")
    return found._replace(radius=found.radius.clamp_max(FURTHEST))
