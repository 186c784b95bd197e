"""PGD for training on an accelerator: every image takes every step, so that no step waits for the host."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from robustbench_rkhs.attacks.ball import fading, into_ball, per_image, unit
from robustbench_rkhs.attacks.objective import margin, objective
from robustbench_rkhs.attacks.pgd import PGD
from robustbench_rkhs.runtime.hashed_rng import hashed_normals, hashed_uniforms

NORMALS, LENGTHS = 11, 12
"""Counters that keep the two draws of a random start apart."""


def unrollable(attack: PGD) -> str | None:
    """The reason why an attack cannot be unrolled; None where it can."""
    if attack.restarts > 1:
        return f"restarts {attack.restarts} (expected 1)"
    if attack.targets and attack.scale_invariant and attack.keep == "best":
        return f"targets {attack.targets} (expected 0, or keep last)"
    return None


def unrolled(
    attack: PGD,
    model: nn.Module,
    x: Float[Tensor, "batch *image"],
    y: Int[Tensor, " batch"],
    keys: Int[Tensor, " batch"],
    share: Float[Tensor, ""],
) -> Float[Tensor, "batch *image"]:
    """The images that `attack` finds at `share` of its eps and step size, from a start hashed from the keys.

    No image is left out once it is misclassified, and nothing is read back to the host: the operations never depend on the data.
    With `keep: best`, the iterate of lowest margin. A random start differs from that of the attack itself.
    """
    eps = attack.budget() * share
    first = attack.step_size or max(2.5 * attack.budget() / attack.steps, attack.budget() / 4)
    adversarial = _random_start(attack, x, keys, eps) if attack.start == "random" else x
    best, lowest = adversarial, x.new_full((len(x),), torch.inf)
    for step in range(attack.steps + 1):
        if step == attack.steps and attack.keep == "last":
            return adversarial
        current = adversarial.detach().requires_grad_()
        with torch.enable_grad():
            logits = model(current).float()
            lowered = objective(attack.loss, logits, y).sum()
        if attack.keep == "best":
            now = margin(logits.detach(), y).nan_to_num(nan=torch.inf)
            better = now < lowest
            best, lowest = torch.where(per_image(better, x), adversarial, best), torch.where(better, now, lowest)
            if step == attack.steps:
                break
        (gradient,) = torch.autograd.grad(lowered, current)
        gradient = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        length = first * fading(step, attack.steps) if attack.decay else first
        moved = adversarial - (length * share) * (unit(gradient) if attack.norm == "l2" else gradient.sign())
        adversarial = _project(attack, x, moved, eps).detach()
    return best


def _project(attack: PGD, x: Tensor, adversarial: Tensor, eps: Tensor) -> Tensor:
    """Into the box, then into the ball."""
    if attack.box == "unit":
        adversarial = adversarial.clamp(0, 1)
    return x + into_ball(adversarial - x, eps.to(x.dtype).expand(len(x)), attack.norm)


def _random_start(attack: PGD, x: Tensor, keys: Tensor, eps: Tensor) -> Tensor:
    """l2: a uniform direction at a uniform share of eps; linf: uniform in the ball."""
    if attack.norm == "linf":
        uniform = hashed_uniforms(keys, attack.seed + NORMALS, x[0].numel()).view_as(x).to(x.dtype)
        return _project(attack, x, x + (2 * uniform - 1) * eps, eps)
    far = hashed_uniforms(keys, attack.seed + LENGTHS, 1)[:, 0].to(x.dtype)
    offset = unit(hashed_normals(keys, attack.seed + NORMALS, x)) * per_image(far, x)
    return _project(attack, x, x + offset * eps, eps)
