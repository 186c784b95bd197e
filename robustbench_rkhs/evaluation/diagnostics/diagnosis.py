"""The diagnosis: every check on a sample of images, cheap ones first."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from robustbench_rkhs.attacks.library_model import confined_randomness, frozen
from robustbench_rkhs.evaluation.diagnostics import attacked, masks
from robustbench_rkhs.evaluation.diagnostics.base import Scene, logits_of
from robustbench_rkhs.nodes.node import UserError, did_you_mean
from robustbench_rkhs.nodes.reasons import reason
from robustbench_rkhs.nodes.threat_model import Box, Norm
from robustbench_rkhs.runtime.counter_rng import mix
from robustbench_rkhs.runtime.heartbeat import staged
from robustbench_rkhs.verdicts import Diagnosis

CHECKS: dict[str, Callable[[Scene], Diagnosis]] = {
    "softmaxed": masks.softmaxed,
    "randomised": masks.randomised,
    "zero_gradients": masks.zero_gradients,
    "random_direction": attacked.random_direction,
    "logit_scale": attacked.logit_scale,
    "huge_eps": attacked.huge_eps,
    "single_step": attacked.single_step,
    "transfer": attacked.transfer,
    "black_box": attacked.black_box,
    "convergence": attacked.convergence,
}
"""The checks by name, cheap ones first."""
PASSES: dict[str, tuple[float, float, float]] = {
    "softmaxed": (1, 0, 0),
    "randomised": (2, 0, 0),
    "zero_gradients": (5, 0, 0),
    "random_direction": (9, 0, 0),
    "logit_scale": (0, 44, 0),
    "huge_eps": (0, 0, 54),
    "single_step": (0, 329, 0),
    "transfer": (0, 329, 0),
    "black_box": (0, 301, 0),
    "convergence": (0, 807, 0),
}
"""Passes of each check at most: per right image, per image that is open at eps, and per image that no attack broke at any eps. By
these the time to go is estimated."""
NEED_EPS = ("random_direction", "logit_scale", "single_step", "transfer", "black_box", "convergence")
"""Checks that compare attacks within eps: at eps 0 there is nothing to compare."""


def diagnose(
    model: nn.Module,
    x: Float[Tensor, "batch *image"],
    y: Int[Tensor, " batch"],
    keys: Int[Tensor, " batch"],
    *,
    norm: Norm,
    box: Box,
    eps: float,
    found: Mapping[str, Float[Tensor, " batch"]] | None = None,
    closed: Bool[Tensor, " batch"] | None = None,
    twin: nn.Module | None = None,
    images: int = 64,
    seed: int = 0,
    checks: Sequence[str] = tuple(CHECKS),
) -> tuple[Diagnosis, ...]:
    """Checks for gradient masking: every check, on a sample of `images` of these.

    `found`: by method, each image's nearest adversarial distance (inf where none): checks run on the rest. `closed`: images that
    need no attack, as they are certified at eps. `twin`: an undefended network of the same task; without one, no transfer.
    `checks`: only these, in the order of CHECKS.
    The sample is drawn by (seed, key), independent of other images. The model, its mode, buffers and gradients and the
    global random state are restored afterwards. A check that raises an error reports it and does not count as failed.
    Cost: at most 1,550 passes per image of the sample, and 330 with a twin. Measured on digits, nothing known beforehand: plain
    networks 370 to 1,130, adversarially trained ones 130 to 920, Lipschitz ones 72 to 640; a broken or certified image is
    not queried further.
    Raises UserError for a negative eps and an unknown check.
    """
    for name in checks:
        if name not in CHECKS:
            raise UserError(f"diagnostics: no check {name!r}; {did_you_mean(name, CHECKS)}")
    if not eps >= 0:
        raise UserError(f"diagnostics: eps must not be negative, found {eps}")
    if not len(x):
        return ()
    chosen = torch.tensor(sampled(keys.tolist(), images, seed), device=x.device)
    with frozen(model), frozen(twin or nn.Identity()), confined_randomness(mix(seed, 11)):
        scene = _scene(model, x, y, keys, chosen, norm, box, float(eps), found or {}, closed, twin, seed)
        due = [name for name in CHECKS if name in checks and (name != "transfer" or twin)]
        counts = len(scene.x), int(scene.left.sum()), int((~scene.ever_broken).sum())
        weights = [1e-9 + sum(each * many for each, many in zip(PASSES[name], counts, strict=True)) for name in due]
        stages = staged(due, weights=weights, detail=lambda name: name.replace("_", " "))
        return tuple(_checked(name, CHECKS[name], scene) for name in stages)


def sampled(keys: Sequence[int], images: int, seed: int) -> list[int]:
    """Rows of a sample of `images` of these, chosen by their keys, independent of other images."""
    order = sorted(range(len(keys)), key=lambda row: mix(seed, int(keys[row]), 7))
    return sorted(order[:images], key=lambda row: int(keys[row]))


@torch.no_grad()
def _scene(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    keys: Tensor,
    chosen: Tensor,
    norm: Norm,
    box: Box,
    eps: float,
    found: Mapping[str, Tensor],
    closed: Tensor | None,
    twin: nn.Module | None,
    seed: int,
) -> Scene:
    clean = logits_of(model, x[chosen])
    right = (clean.argmax(1) == y[chosen]) & clean.isfinite().all(1) & (clean.shape[1] > 1)
    kept = chosen[right]
    return Scene(
        model,
        x[kept].contiguous(),
        y[kept],
        keys[kept],
        clean[right],
        norm,
        box,
        eps,
        seed,
        {name: distance.to(x.device)[kept] for name, distance in found.items()},
        torch.zeros(len(kept), dtype=torch.bool, device=x.device) if closed is None else closed.to(x.device)[kept],
        len(chosen),
        twin,
    )


def _checked(name: str, check: Callable[[Scene], Diagnosis], scene: Scene) -> Diagnosis:
    if not len(scene.x):
        return Diagnosis(name, False, 0.0, 0.0, "no image of the sample is right: nothing to check", 0.0)
    if name in NEED_EPS and scene.eps == 0:
        return Diagnosis(name, False, 0.0, 0.0, "at eps 0 there is nothing to check", 0.0)
    try:
        return check(scene)
    except (RuntimeError, ValueError, TypeError) as error:
        return Diagnosis(name, False, 0.0, 0.0, f"could not run: {reason(error)}", 0.0)
