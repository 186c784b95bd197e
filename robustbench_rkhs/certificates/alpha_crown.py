"""The certificate of linear bounds whose slopes are optimised (alpha-CROWN), image by image."""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Literal

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from robustbench_rkhs.certificates.base import Certificate, Certified
from robustbench_rkhs.certificates.bisection import largest
from robustbench_rkhs.nodes.node import Real
from robustbench_rkhs.nodes.threat_model import Box, Norm
from robustbench_rkhs.relaxations.full import linear_proof


class AlphaCrownCertificate(Certificate):
    r"""CROWN, the lower line of each undecided ReLU chosen by gradient steps.

    .. math:: \max_{0 \le \alpha \le 1} \min_{x' \in B_\varepsilon(x)} a_j(\alpha)^\top x' + b_j(\alpha)

    Every alpha is sound, so the best bound seen of each class is kept, CROWN's own among them. The slopes are those of the
    last pass, from the differences of logits to the image; the bounds at the kinks are CROWN's. Otherwise as the certificate
    `crown`. Cost: that of `crown`, and for each radius tried `steps` backward passes a class, differentiated.
    Source: Xu et al., "Fast and Complete: Enabling Complete Verification with Rapid and Massively Parallel Incomplete
    Verifiers", ICLR 2021.
    """

    norms: ClassVar[frozenset[str]] = frozenset({"l2", "linf"})
    image_by_image: ClassVar[bool] = True

    name: Literal["alpha_crown"] = "alpha_crown"
    norm: Norm = "l2"
    """Distance the radius is measured in."""
    box: Box = "none"
    """`none`: the whole ball is certified; `unit`: a linf ball is cut to [0, 1], valid for images in it and no others."""
    steps: int = Field(20, ge=1)
    """Adam steps."""
    rate: Real = Field(0.2, gt=0)
    """Their length."""
    shared: bool = False
    """One slope for all classes, in place of one for each: less memory, looser."""
    search: bool = True
    """Look for the largest radius; else only for the largest of the epsilons asked for."""
    tolerance: Real = Field(1e-2, gt=0)
    """Relative gap at which the search stops."""
    neurons: int = Field(20_000, ge=1)
    """Networks with more values at kinks are refused, for each costs backward passes of its own."""

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *image"],
        y: Int[Tensor, " batch"],
        keys: Int[Tensor, " batch"],
        epsilons: Sequence[float] = (),
    ) -> Certified:
        proof = partial(linear_proof, optimise=self.steps, shared=self.shared, rate=self.rate)
        settings = (epsilons, self.norm, self.box, True, proof, self.search, self.tolerance, self.neurons)
        return largest(self.name, model, x, y, *settings)
