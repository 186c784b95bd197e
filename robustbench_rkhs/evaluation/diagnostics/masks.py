"""Signs of masking in the model: useless gradients, random outputs, outputs that are not logits."""

import copy

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from robustbench_rkhs.attacks.hidden_logits import Reader
from robustbench_rkhs.bounds.coarse import coarse_steps
from robustbench_rkhs.evaluation.diagnostics.base import SHARE, Scene, gradients, logits_of
from robustbench_rkhs.evaluation.diagnostics.walk import margins
from robustbench_rkhs.verdicts import Diagnosis

USELESS = 10.0
"""A gradient that puts the boundary farther away than this many diameters of the box points nowhere in it: honest networks measured
at most 1; gradients that underflow put it at 1e5 and more."""
DIFFER = 1e-4
"""Answers that differ by more than this share of their spread were drawn, or depend on the neighbours in the batch: summation order
alone changes float32 answers by a few 1e-6."""
REPEATS = 0.1
"""Different pictures that share their largest logit to the last bit: of 64 float32 numbers two agree once in 1,000 samples."""
COARSE_REPEATS = 0.5
"""The same for a model that computes in half precision: of 64 bfloat16 numbers, one in five or so agrees with another."""


def zero_gradients(scene: Scene) -> Diagnosis:
    r"""Right images whose margin has no useful gradient: not finite, 0, or so small that it points out of the world.

    .. math:: m(x) / \lVert \nabla m(x) \rVert_* > 10\, \mathrm{diam}(\mathrm{box})

    Threshold: 5% of the right images. Where any show it, a float64 copy is asked too: a gradient there
    says that float32 underflows.
    Cost: a forward and a backward pass, as many again of the copy where it is asked.
    """
    slopes = scene.slopes
    bad = ~slopes.flatten(1).isfinite().all(1)
    lost = useless(scene, slopes, scene.margins)
    images, cost = len(scene.x), 2.0
    words = f"{int(lost.sum())} of {images} right images have no useful gradient of the margin ({int(bad.sum())} not finite)"
    if lost.any() and scene.x.dtype != torch.float64:
        rows = lost.nonzero().flatten()
        try:
            wide = copy.deepcopy(scene.model).double()
            x = scene.x[rows].double()
            read = Reader(wide)
            found = gradients(lambda images: read(images).logits, x, scene.y[rows])
            behind = logits_of(lambda images: read(images).logits, x)
            fine = ~useless(scene, found, margins(behind, scene.y[rows]))
            words += f"; in float64 {int(fine.sum())} of them have one" + (": float32 underflows" if fine.any() else "")
            cost += 3.0 * len(rows) / max(images, 1)
        except (RuntimeError, TypeError, ValueError):
            words += "; a float64 copy could not be asked"
    return scene.share("zero_gradients", lost, SHARE, words, cost * images / max(scene.sampled, 1))


def useless(scene: Scene, slopes: Float[Tensor, "some *image"], margin: Float[Tensor, " some"]) -> Bool[Tensor, " some"]:
    """Whether the gradient is not finite or puts the boundary out of reach."""
    flat = slopes.flatten(1).double()
    steep = flat.nan_to_num(0, 0, 0).norm(p=2 if scene.norm == "l2" else 1, dim=1)
    result: Tensor = ~flat.isfinite().all(1) | ~(margin.double() <= USELESS * scene.diameter * steep)
    return result


@torch.no_grad()
def randomised(scene: Scene) -> Diagnosis:
    """Images whose answer differs when they are asked again, in reverse order: drawn, or no function of the image alone.

    Threshold: any 5% of the right images by more than 1e-4 of the logits' spread. Cost: 2 forward passes.
    """
    again = [logits_of(scene.model, scene.x), logits_of(scene.model, scene.x.flip(0)).flip(0)]
    spread = (scene.clean.amax(1) - scene.clean.amin(1)).clamp_min(1e-30)
    apart = torch.stack([(one - scene.clean).abs().amax(1) for one in again]).amax(0)
    differ = ~(apart <= DIFFER * spread)
    changed = torch.stack([one.argmax(1) != scene.y for one in again]).any(0)
    words = f"asked twice again, {int(differ.sum())} of {len(scene.x)} right images get another answer, "
    words += f"{int(changed.sum())} another class"
    return scene.share("randomised", differ, SHARE, words, 2 * len(scene.x) / max(scene.sampled, 1))


@torch.no_grad()
def softmaxed(scene: Scene) -> Diagnosis:
    r"""Outputs that are no logits: probabilities, or answers pressed to a common value, so that their differences are lost.

    Rows that sum to 1 and are not negative (probabilities); rows of log-probabilities,
    :math:`\log \sum_k e^{f_k} = 0`, whose largest rounds to 0; different pictures whose largest outputs agree to the last bit
    (a clamp, a saturated or rounded output). Log-probabilities that are not saturated are logits like any others.
    Threshold: probabilities and saturated log-probabilities on 5% of the right images, agreement on 10% (50% for a model that
    computes in half precision). Cost: a forward pass of one image.
    """
    clean, top = scene.clean.double(), scene.clean.amax(1)
    if clean.shape[1] < 2 or not len(clean):
        return scene.share("softmaxed", torch.zeros(len(clean), dtype=torch.bool), SHARE, "no outputs to compare", 0.0)
    sums = (clean >= 0).all(1) & ((clean.sum(1) - 1).abs() < 1e-3)
    if len(clean) > 1 and (clean == clean[:1]).all():
        sums = torch.zeros_like(sums)  # what no picture changes is no softmax's; that pictures share it is said below
    logs = (clean.logsumexp(1).abs() < 1e-3) & (top > -1e-7)
    different = torch.unique(scene.x.flatten(1), dim=0, return_inverse=True)[1]
    same = (top[:, None] == top[None]) & (different[:, None] != different[None])
    repeated = same.any(1)
    if sums.double().mean() > SHARE:
        hot = bool(((clean == 0) | (clean == 1))[sums].all())
        what = "one-hot (decisions, or a softmax that saturates)" if hot else "probabilities (sum to 1)"
        return scene.share("softmaxed", sums, SHARE, f"{int(sums.sum())} of {len(sums)} rows are {what}", 0.0)
    if logs.double().mean() > SHARE:
        words = f"{int(logs.sum())} of {len(logs)} rows are log-probabilities whose largest rounds to 0"
        return scene.share("softmaxed", logs, SHARE, words, 0.0)
    words = f"{int(repeated.sum())} of {len(repeated)} right images share their largest output to the last bit with another picture"
    coarse = bool(coarse_steps(scene.model, scene.x[:1]))
    return scene.share("softmaxed", repeated, COARSE_REPEATS if coarse else REPEATS, words, 0.0)
