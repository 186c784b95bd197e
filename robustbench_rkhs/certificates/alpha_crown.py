"""The alpha-CROWN certificate: linear bounds with optimised slopes, per image."""

from typing import Literal

from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from robustbench_rkhs.certificates.relaxation import LinearCertificate
from robustbench_rkhs.nodes.node import Real
from robustbench_rkhs.relaxations.full_crown import Found, linear_proof
from robustbench_rkhs.relaxations.interval import Trace


class AlphaCrownCertificate(LinearCertificate):
    r"""CROWN with the slope of each unstable ReLU's lower line optimised by gradient steps.

    .. math:: \max_{0 \le \alpha \le 1} \min_{x' \in B_\varepsilon(x)} a_j(\alpha)^\top x' + b_j(\alpha)

    Every alpha is sound, so the best bound found for each class is kept, CROWN's own included. Only the slopes of the last
    pass, from the differences of logits to the image, are optimised; the bounds at the kinks are CROWN's. Otherwise as the
    certificate `crown`. Cost: that of `crown`, and for each radius tried `steps` differentiated backward passes per class.
    Source: Xu et al., "Fast and Complete: Enabling Complete Verification with Rapid and Massively Parallel Incomplete
    Verifiers", ICLR 2021.
    """

    name: Literal["alpha_crown"] = "alpha_crown"
    steps: int = Field(20, ge=1)
    """Adam steps."""
    rate: Real = Field(0.2, gt=0)
    """Step size of Adam."""
    shared: bool = False
    """One slope for all classes instead of one per class: less memory, looser."""

    def proof(self, found: Trace, y: Int[Tensor, " batch"]) -> Found:
        return linear_proof(found, y, optimise=self.steps, shared=self.shared, rate=self.rate)
