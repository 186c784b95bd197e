"""The margin certificate with ECLipsE-Fast bounds: a quadratic form propagated through the layers."""

from typing import Literal

from jaxtyping import Float64
from torch import Tensor

from robustbench_rkhs.bounds import Step, eclipse_pairs
from robustbench_rkhs.bounds.eclipse import too_wide
from robustbench_rkhs.bounds.sketch import Sketch
from robustbench_rkhs.certificates.pairwise import PairwiseCertificate


class EclipseCertificate(PairwiseCertificate):
    r"""The smallest margin to another class, divided by the ECLipsE-Fast bound of that difference of logits.

    .. math:: r = \min_{j \ne y} \frac{f_y(x) - f_j(x) - 2e}{L_{yj}} (1 - 10^{-12}), \qquad
              r_\infty = r_2 / \sqrt d

    L_yj: `bounds.eclipse_pairs`: for a ReLU network of matrices W_1 ... W_K with w_y the rows of W_K, and M_0 = I,

    .. math:: S_i = W_i M_{i-1}^{-1} W_i^\top, \quad \lambda_i = \frac{2}{\lVert S_i \rVert_2}, \quad
              M_i = \lambda_i I - \frac{\lambda_i^2}{4} S_i, \qquad
              L_{yj}^2 = (w_y - w_j) M_{K-1}^{-1} (w_y - w_j)^\top

    Each M_i counts only once the matrix inequality that makes it a bound is proved in float64. Everything else is as for
    `margin`, whose radius is never above this one (but for rounding, a relative 1e-9). For sequential layers: at residual blocks,
    MaxMin, max-pools and the like it multiplies bounds as `margin` does. Raises Uncertifiable, naming the layer, where a bound is
    not proved, and where a layer or the image is wider than 4096 features.
    Cost: one float64 forward pass, and once per state of the model dense linear algebra of each layer's width.
    Source: Xu and Sivaranjani, NeurIPS 2024.
    """

    name: Literal["eclipse"] = "eclipse"

    def refusal(self, model: Sketch) -> str:
        return model.refusal or next((too_wide(layer) for layer in model.layers if layer.alone and too_wide(layer)), "")

    def pairs(self, chain: list[Step], shape: tuple[int, ...], classes: int) -> Float64[Tensor, "classes classes"]:
        return eclipse_pairs(chain, shape, classes)
