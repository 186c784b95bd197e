"""A certificate of your own: `rkhs-eval --certify examples/own/own_certificate.py:GlobalBound`.

Any subclass of `Certificate` will do. This one divides gaps between logits by proven bounds, as PairwiseCertificate does for it,
with its rounding in float64; only the bounds are new.
"""

import math

import torch
from torch import Tensor

from robustbench_rkhs.bounds import Step
from robustbench_rkhs.certificates.pairwise import PairwiseCertificate


class GlobalBound(PairwiseCertificate):
    r"""The gap to the runner-up over :math:`\sqrt 2 \prod_k L_k`, where L_k is the proven l2 bound of layer k.

    Two logits part no faster than sqrt 2 times as fast as the logits together move.
    """

    def pairs(self, chain: list[Step], shape: tuple[int, ...], classes: int) -> Tensor:
        bound = 2**0.5 * math.prod(step.bound.value for step in chain) * (1 + 1e-12)
        return torch.full((classes, classes), bound, dtype=torch.float64)
