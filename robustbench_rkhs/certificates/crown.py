"""The certificate of linear bounds (CROWN), image by image."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from robustbench_rkhs.certificates.base import Certificate, Certified
from robustbench_rkhs.certificates.bisection import largest
from robustbench_rkhs.nodes.node import Real
from robustbench_rkhs.nodes.threat_model import Box, Norm
from robustbench_rkhs.relaxations.full import linear_proof


class CrownCertificate(Certificate):
    r"""The largest ball over which linear bounds keep the label's logit above every other.

    .. math:: f_y(x') - f_j(x') \ge a_j^\top x' + b_j - e_j, \qquad
              r = \min_{j \ne y} \frac{a_j^\top x + b_j - e_j}{\lVert a_j \rVert_*} \text{ if } \le \varepsilon,
              \text{ else } \varepsilon

    The lines hold over the ball of radius eps tried, hence in every smaller one. At each kink a value lies between lines,
    between bounds that are themselves linear bounds back to the image (cut by intervals). * is 2 (l2) or 1 (linf). e_j:
    bound of the float64 rounding, summed on the way (`relaxations.rounding`). Exact for affine models, up to 1e-9.
    The epsilons asked for are tried first, the smallest to begin with; then the radius is searched. Computed in float64, on the
    images' GPU or the CPU; the claim is about the network in real arithmetic with its weights as given.
    Raises Uncertifiable, naming the layer, where there are no bounds through it. Cost: for each radius tried, two backward
    passes for every value that can be on both sides of a kink. Source: Zhang et al., NeurIPS 2018; Xu et al., NeurIPS 2020.
    """

    norms: ClassVar[frozenset[str]] = frozenset({"l2", "linf"})
    image_by_image: ClassVar[bool] = True

    name: Literal["crown"] = "crown"
    norm: Norm = "l2"
    """Distance the radius is measured in."""
    box: Box = "none"
    """`none`: the whole ball is certified; `unit`: a linf ball is cut to [0, 1], valid for images in it and no others."""
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
        settings = (epsilons, self.norm, self.box, True, linear_proof, self.search, self.tolerance, self.neurons)
        return largest(self.name, model, x, y, *settings)
