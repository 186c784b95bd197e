"""The base class of certificates: a proved lower bound of each image's robust radius, or the reason why there is none."""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from jaxtyping import Float64, Int
from torch import Tensor, nn

from robustbench_rkhs.bounds.sketch import Sketch
from robustbench_rkhs.nodes.node import Node

FURTHEST = 1e4
"""No radius is claimed beyond this, with pixels in [0, 1]: far enough from the image, the model as it runs (float32) overflows,
whatever holds in real arithmetic."""


class Certified(NamedTuple):
    """The proved radii and how they were obtained. On the CPU."""

    radius: Float64[Tensor, " batch"]
    """The prediction is the label on the whole closed ball of this radius; 0 where nothing is proved. Rounded down."""
    reason: list[str]
    """Why nothing was proved: `unknown`, `timeout`, `refused` or `error`; else empty."""
    failure_probability: Float64[Tensor, " batch"]
    """Probability that the claim is wrong: 0 for a proof."""
    forwards: Int[Tensor, " batch"] | None = None
    """Forward passes of the model spent on each image, if they are counted."""
    arithmetic: str | list[str] | None = None
    """The arithmetic for which these radii hold (of all, or of each), where the call finds that out; else the certificate's."""


class Certificate(Node):
    """Base class of all certificates: `__call__(model, x, y, keys, epsilons)`.

    `keys`: one integer key per image that seeds its random numbers; `epsilons`: a certificate may stop once these are decided.
    The model, its mode, gradients and buffers stay as they are. A model that cannot be certified raises
    lipschitz.Uncertifiable, which names the reason.
    """

    norms: ClassVar[frozenset[str]] = frozenset()
    """Norms that it can certify."""
    image_by_image: ClassVar[bool] = False
    """True: its cost is per image, so that it runs block by block and can be stopped between two blocks."""

    @property
    def arithmetic(self) -> str:
        """The arithmetic for which the claim holds."""
        return "real"

    @property
    def label(self) -> str:
        """The name in tables."""
        return str(getattr(self, "name", "") or type(self).__name__)

    def refusal(self, model: Sketch) -> str:
        """Why it has no proof for a model with this graph, before anything is computed; empty where it may have one."""
        return ""

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Int[Tensor, " batch"],
        keys: Int[Tensor, " batch"],
        epsilons: Sequence[float],
    ) -> Certified:
        raise TypeError(f"{type(self).__name__} is not a certificate by itself")
