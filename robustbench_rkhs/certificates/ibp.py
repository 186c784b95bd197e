"""The IBP certificate: interval bounds, per image."""

from typing import Literal

from jaxtyping import Int
from torch import Tensor

from robustbench_rkhs.certificates.relaxation import RelaxationCertificate
from robustbench_rkhs.nodes.threat_model import Norm
from robustbench_rkhs.relaxations.full_crown import Found, interval_proof
from robustbench_rkhs.relaxations.interval import Trace


class IBPCertificate(RelaxationCertificate):
    r"""The largest ball over which intervals keep the label's logit above every other.

    .. math:: \min_{j \ne y}\; a_j c + b_j - |a_j|\, \rho - e_j > 0, \qquad a_j = w_y - w_j, \; b_j = b_y - b_j

    c and rho: the interval bounds of the inputs of the last affine layers, whose weights are w and b. e: bound of the float64
    rounding. Meant for networks trained with the loss `ibp`; normally trained networks get almost no radius.
    Otherwise as the certificate `crown`. Cost: three forward passes per radius tried.
    Source: Gowal et al., "On the Effectiveness of Interval Bound Propagation", 2018.
    """

    name: Literal["ibp"] = "ibp"
    norm: Norm = "linf"
    """Norm of the radius."""

    def proof(self, found: Trace, y: Int[Tensor, " batch"]) -> Found:
        return interval_proof(found, y)
