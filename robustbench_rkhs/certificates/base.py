"""The base class of certificates: a proved lower bound of each image's robust radius, or the reason why there is none."""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from jaxtyping import Float64, Int
from torch import Tensor, nn

from robustbench_rkhs.bounds.sketch import Sketch
from robustbench_rkhs.nodes.node import Node


class Certified(NamedTuple):
    """What was proved. On the CPU."""

    radius: Float64[Tensor, " batch"]
    """The prediction is the label on the whole closed ball of this radius; 0 where nothing is proved. Rounded down."""
    reason: list[str]
    """Why nothing was proved: `unknown`, `timeout`, `refused` or `error`; empty where the radius says it all."""
    failure_probability: Float64[Tensor, " batch"]
    """Probability that the claim is wrong: 0 for a proof."""
    forwards: Int[Tensor, " batch"] | None = None
    """Forward passes of the model spent on each image, where it counts them."""


class Certificate(Node):
    """Common ground of all certificates: `__call__(model, x, y, keys, epsilons)`.

    `keys`: one integer key per image that seeds its random numbers; `epsilons`: a certificate may stop where these are settled.
    The model, its mode, gradients and buffers are left as they were. What is not proved is refused:
    lipschitz.Uncertifiable, by name.
    """

    norms: ClassVar[frozenset[str]] = frozenset()
    """Norms it can certify."""
    image_by_image: ClassVar[bool] = False
    """True: its cost is each image's own, so that it runs block by block and can be stopped between two."""

    @property
    def arithmetic(self) -> str:
        """What the claim holds for: the network in real arithmetic."""
        return "real"

    @property
    def label(self) -> str:
        """The name in tables."""
        return str(getattr(self, "name", "") or type(self).__name__)

    def refusal(self, model: Sketch) -> str:
        """Why it has no proof for a model of this graph, before anything is computed; empty where it may have one."""
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
