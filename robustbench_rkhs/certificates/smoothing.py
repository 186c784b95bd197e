"""The randomized smoothing certificate: a lower bound on the top class's probability under noise, and the radius it proves."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from scipy.special import ndtri
from torch import Tensor, nn

from robustbench_rkhs.certificates.base import Certificate, Certified
from robustbench_rkhs.certificates.sequential import Look, Stopping, estimate, goals, looks
from robustbench_rkhs.layers.frozen import freeze
from robustbench_rkhs.networks.smoothed import Smoothed, noise
from robustbench_rkhs.nodes.node import Real, Seed, UserError
from robustbench_rkhs.nodes.threat_model import Norm
from robustbench_rkhs.runtime.clock import UNKNOWN, OutOfTime, ask, fitting
from robustbench_rkhs.runtime.heartbeat import staged
from robustbench_rkhs.runtime.modes import per_image

SELECT, ESTIMATE = 11, 12
"""Counters that separate the samples for selection, for estimation, and for the classifier's own votes."""
SLACK = 1e-9
"""Relative rounding of the two quantiles, which SciPy computes to about 1e-12; it also closes the open ball of the theorem."""


class SmoothingCertificate(Certificate):
    r"""Randomized smoothing: sigma times the normal quantile of a lower bound of the probability of the class under noise.

    .. math:: r = \sigma\, \Phi^{-1}(\underline p) \text{ where } \underline p > 1/2, \quad \text{else the certificate abstains};
              \qquad r_\infty = r / \sqrt d

    The model is a `Smoothed` classifier, and the claim is about it, never about its base. The class is selected on `n0` samples;
    at most `n` other samples give the lower limit p of its probability. An image whose selected class is not the label has
    radius 0; one for which nothing is proved has reason `unknown`. The claim about one image errs with probability at most
    `alpha` (its `failure_probability`), whenever sampling stops; several probabilistic certificates of one image would have
    to share one alpha. Radii beyond the largest requested eps are those known when sampling stopped.
    Sampling stops once each requested eps is certified, or given up: where the forecast, from the hits so far, that all n samples
    would certify it is at most `futility`. Giving up costs no soundness. `betting` asks a bettor (`betting_limit`: a limit that
    holds at all times) after every 100 samples, later every 5%, and Clopper-Pearson after n, each with half of alpha. `spending`
    looks at n = 100, 200, 400 ... at Clopper-Pearson limits, which share alpha. `sequence` is a mixture martingale at the moments
    of `betting`. `fixed` draws all n samples (Cohen et al.), as do all rules where no eps is requested.
    A sample counts only where the class is strictly on top. Samples are seeded by (seed, key, number), and each image is
    evaluated alone: the same in any batch. Holds for the base as computed and exact Gaussian noise. The noise is not clamped to
    [0, 1]. Cost: at most n0 + n forward passes of the base per image, in `forwards`. Raises UserError for a plain model.
    Source: Cohen et al., ICML 2019; Ville, 1939; Waudby-Smith and Ramdas, JRSS-B 2024; the mixture of Robbins, 1970.
    """

    norms: ClassVar[frozenset[str]] = frozenset({"l2", "linf"})
    image_by_image: ClassVar[bool] = True

    name: Literal["smoothing"] = "smoothing"
    norm: Norm = "l2"
    """Norm of the radius."""
    sigma: Real | None = Field(None, gt=0)
    """Standard deviation of the noise, with pixels in [0, 1]: default that of the model, which it must equal."""
    n: int = Field(100_000, ge=1)
    """Largest number of samples per image."""
    n0: int = Field(100, ge=1)
    """Samples from which the class is selected."""
    alpha: Real = Field(0.001, gt=0, lt=0.5)
    """Probability that the claim about an image is wrong."""
    futility: Real = Field(0.001, gt=0, lt=0.5)
    """Forecast below which an eps is given up: the probability that all n samples would certify it."""
    stopping: Stopping = "betting"
    """When sampling stops: once every requested eps is decided, by one of three rules, or after `n` samples (`fixed`)."""
    batch: int = Field(2000, ge=1)
    """Samples per forward pass."""
    seed: Seed = 0
    """Seed of the random numbers."""

    @property
    def arithmetic(self) -> str:
        return "the base as computed, exact Gaussian noise"

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *image"],
        y: Int[Tensor, " batch"],
        keys: Int[Tensor, " batch"],
        epsilons: Sequence[float] = (),
    ) -> Certified:
        if not isinstance(model, Smoothed):
            raise UserError("the smoothing certificate needs a smoothed classifier: rkhs-eval --smooth sigma=0.25")
        if self.sigma is not None and self.sigma != model.sigma:
            raise UserError(f"certificate 'smoothing': sigma {self.sigma:g}, but the model is smoothed with {model.sigma:g}")
        base, found, plan = freeze(model.base), [], self.plan(model.sigma, x[:1].numel(), epsilons)
        with torch.no_grad(), per_image(base):
            for image, label, key in staged(list(zip(x, y.tolist(), keys.tolist(), strict=True))):
                try:
                    ask()
                    found.append(_Image(self, base, model.sigma, image, key).certify(label, *plan))
                except OutOfTime:
                    found.append((0.0, "timeout", 0))
        radius = torch.tensor([one[0] for one in found], dtype=torch.float64)
        failure = self.alpha * (radius > 0).double()
        draws = torch.tensor([one[2] for one in found], dtype=torch.int64)
        return Certified(radius, [one[1] for one in found], failure, draws)

    def plan(self, sigma: float, inputs: int, epsilons: Sequence[float]) -> tuple[list[Look], dict[float, int]]:
        """The looks at the samples of an image of `inputs` values, and the hits that the last look needs for each eps above 0."""
        asked = [eps for eps in epsilons if eps > 0]
        plan = looks(self.stopping if asked else "fixed", self.n, self.alpha)
        return plan, goals(asked, lambda probability: self.radius_of(probability, sigma, inputs), plan[-1])

    def radius_of(self, probability: float, sigma: float, inputs: int) -> float:
        """The radius that a probability proves, rounded down; 0 for at most 1/2."""
        lowered = probability * (1 - SLACK)
        if not lowered > 0.5:
            return 0.0
        radius = sigma * float(ndtri(lowered)) * (1 - SLACK)
        return radius / math.sqrt(inputs) * (1 - SLACK) if self.norm == "linf" else radius


class _Image:
    """One image and its samples."""

    def __init__(self, settings: SmoothingCertificate, base: nn.Module, sigma: float, image: Tensor, key: int) -> None:
        self.settings, self.base, self.sigma, self.image, self.key = settings, base, sigma, image, key
        self.pace = UNKNOWN
        """Seconds per sample."""

    def certify(self, label: int, plan: Sequence[Look], needed: Mapping[float, int]) -> tuple[float, str, int]:
        """Radius, reason and forward passes, by a plan of `SmoothingCertificate`."""
        settings = self.settings
        if not self.image.isfinite().all():
            return 0.0, "error", 0
        if self.picked() != label:
            return 0.0, "", settings.n0

        def radius(probability: float) -> float:
            return settings.radius_of(probability, self.sigma, self.image.numel())

        found = estimate(lambda begin, end: self.hits(label, begin, end), radius, needed, plan, settings.futility)
        proved = radius(found.lower)
        reason = "timeout" if found.cut else "" if proved > 0 else "unknown"
        return proved, reason, settings.n0 + found.draws

    def logits(self, stream: int, begin: int, end: int) -> Float[Tensor, "draws classes"]:
        begun = time.monotonic()
        z = noise(tuple(self.image.shape), begin, end, self.settings.seed, self.key, stream).to(self.image)
        found: Tensor = self.base(self.image + self.sigma * z)
        self.pace = (time.monotonic() - begun) / (end - begin)
        return found

    def parts(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Batches of samples; the clock is checked before each, and they shrink as the time runs out."""
        while begin < end:
            ask()
            after = min(begin + min(self.settings.batch, fitting(self.pace)), end)
            yield begin, after
            begin = after

    def picked(self) -> int:
        """The most frequent class among the first n0 samples."""
        votes = [self.logits(SELECT, *part).argmax(1) for part in self.parts(0, self.settings.n0)]
        return int(torch.cat(votes).bincount().argmax())

    def hits(self, label: int, begin: int, end: int) -> int:
        """Number of samples begin .. end-1 on which the label is strictly on top; logits that are not finite are no hit."""
        total = 0
        for part in self.parts(begin, end):
            logits = self.logits(ESTIMATE, *part)
            own, others = logits[:, label], logits.clone()
            others[:, label] = -torch.inf
            total += int(((own > others.amax(1)) & logits.isfinite().all(1)).sum())
        return total
