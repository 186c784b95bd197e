"""The margin certificate: the difference of two logits divided by the proven Lipschitz bound of that difference."""

from typing import Literal

from jaxtyping import Float64
from torch import Tensor

from robustbench_rkhs.bounds import Step
from robustbench_rkhs.bounds.network import pair_bounds
from robustbench_rkhs.certificates.pairwise import PairwiseCertificate


class MarginCertificate(PairwiseCertificate):
    r"""The smallest margin to another class, divided by the proven Lipschitz bound of that difference of logits.

    .. math:: r = \min_{j \ne y} \frac{f_y(x) - f_j(x) - 2e}{L_{yj}} (1 - 10^{-12}), \qquad
              r_\infty = r_2 / \sqrt d

    L_yj: `bounds.pairs`, in logits per unit l2 of input. e: bound of the float64 rounding of the logits. Rounded
    down, so that the label's logit is strictly the largest on the whole closed ball; 0 where the image is
    misclassified or tied, at most 1e4 (`base.FURTHEST`), also where no difference of logits depends on the image.
    In float64, for the network in real arithmetic; linf by the inclusion of balls. The model is only read; a float64 copy
    runs on the CPU. Exact for affine models, up to 1e-9. Raises Uncertifiable, naming the layer, where a bound is not proved.
    Cost: one float64 forward pass, and the bounds once per state of the model (cached by the digest of its weights).
    Source: Tsuzuku et al., NeurIPS 2018, with one bound per pair of classes.
    """

    name: Literal["margin"] = "margin"

    def pairs(self, chain: list[Step], shape: tuple[int, ...], classes: int) -> Float64[Tensor, "classes classes"]:
        return pair_bounds(chain, shape, classes)
