"""The CROWN certificate: linear bounds, per image."""

from typing import Literal

from jaxtyping import Int
from torch import Tensor

from robustbench_rkhs.certificates.relaxation import LinearCertificate
from robustbench_rkhs.relaxations.full_crown import Found, linear_proof
from robustbench_rkhs.relaxations.interval import Trace


class CrownCertificate(LinearCertificate):
    r"""The largest ball over which linear bounds keep the label's logit above every other.

    .. math:: f_y(x') - f_j(x') \ge a_j^\top x' + b_j - e_j, \qquad
              r = \min_{j \ne y} \frac{a_j^\top x + b_j - e_j}{\lVert a_j \rVert_*} \text{ if } \le \varepsilon,
              \text{ else } \varepsilon

    The lines hold over the tried ball of radius eps, hence in every smaller one. At each kink a value lies between two lines,
    over bounds that are themselves linear bounds back to the image (intersected with intervals). * is 2 (l2) or 1 (linf). e_j:
    bound of the float64 rounding, accumulated on the way (`relaxations.rounding`). With `search` exact for affine
    models, up to 1e-9.
    The requested epsilons are tried first, from the smallest; then the radius is searched by bisection. Computed in float64, on
    the images' GPU or the CPU; the claim is about the network in real arithmetic with its weights as given, or, by `network`,
    in float32: margins are then proved above twice what a logit may err by.
    Raises Uncertifiable, naming the layer, for a layer without bounds. Cost: for each radius tried, two backward
    passes for every value that can lie on both sides of a kink. Source: Zhang et al., NeurIPS 2018; Xu et al., NeurIPS 2020.
    """

    name: Literal["crown"] = "crown"

    def proof(self, found: Trace, y: Int[Tensor, " batch"]) -> Found:
        return linear_proof(found, y)
