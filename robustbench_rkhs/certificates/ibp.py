"""The certificate of interval bounds, image by image."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from robustbench_rkhs.certificates.base import Certificate, Certified
from robustbench_rkhs.certificates.bisection import largest
from robustbench_rkhs.nodes.node import Real
from robustbench_rkhs.nodes.threat_model import Box, Norm
from robustbench_rkhs.relaxations.full import interval_proof


class IBPCertificate(Certificate):
    r"""The largest ball over which intervals keep the label's logit above every other.

    .. math:: \min_{j \ne y}\; a_j c + b_j - |a_j|\, \rho - e_j > 0, \qquad a_j = w_y - w_j, \; b_j = b_y - b_j

    c and rho: the box that intervals find for what goes into the last affine layers, whose weights are w and b. e: bound of
    the float64 rounding. What the loss `ibp` trains is proved by it; plainly trained networks have next to no radius.
    Otherwise as the certificate `crown`. Cost: three forward passes for each radius tried.
    Source: Gowal et al., "On the Effectiveness of Interval Bound Propagation", 2018.
    """

    norms: ClassVar[frozenset[str]] = frozenset({"l2", "linf"})
    image_by_image: ClassVar[bool] = True

    name: Literal["ibp"] = "ibp"
    norm: Norm = "linf"
    """Distance the radius is measured in."""
    box: Box = "none"
    """`none`: the whole ball is certified; `unit`: a linf ball is cut to [0, 1], valid for images in it and no others."""
    search: bool = True
    """Look for the largest radius; else only for the largest of the epsilons asked for."""
    tolerance: Real = Field(1e-2, gt=0)
    """Relative gap at which the search stops."""

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *image"],
        y: Int[Tensor, " batch"],
        keys: Int[Tensor, " batch"],
        epsilons: Sequence[float] = (),
    ) -> Certified:
        settings = (epsilons, self.norm, self.box, False, interval_proof, self.search, self.tolerance)
        return largest(self.name, model, x, y, *settings)
