"""The margin certificate with LipLT bounds, which follow the linear path through the activations."""

from typing import Literal

from jaxtyping import Float64
from torch import Tensor

from robustbench_rkhs.bounds import Step, liplt_pairs
from robustbench_rkhs.certificates.pairwise import PairwiseCertificate


class LipLTCertificate(PairwiseCertificate):
    r"""The smallest margin to another class, divided by the LipLT bound of that difference of logits.

    .. math:: r = \min_{j \ne y} \frac{f_y(x) - f_j(x) - 2e}{L_{yj}} (1 - 10^{-12}), \qquad
              r_\infty = r_2 / \sqrt d

    L_yj: `bounds.liplt_pairs`: for a ReLU network of matrices W_1 ... W_K with w_y the rows of W_K,

    .. math:: m_k = 2^{1-k} \lVert W_k \cdots W_1 \rVert_2 + \sum_{i < k} 2^{i-k} \lVert W_k \cdots W_{i+1} \rVert_2 \, m_i,
              \qquad L_{yj} = m_K \text{ with } w_y - w_j \text{ for } W_K

    Everything else is as for `margin`, whose radius is never above this one (but for rounding, a relative 1e-9). It is tighter
    where activations with one slope interval follow affine layers; at MaxMin, max-pools and the like it multiplies as `margin`
    does. Raises Uncertifiable, naming the layer, where a bound is not proved.
    Cost: one float64 forward pass, and once per state of the model one norm for each pair of activations.
    Source: Fazlyab et al., NeurIPS 2023.
    """

    name: Literal["liplt"] = "liplt"

    def pairs(self, chain: list[Step], shape: tuple[int, ...], classes: int) -> Float64[Tensor, "classes classes"]:
        return liplt_pairs(chain, shape, classes)
