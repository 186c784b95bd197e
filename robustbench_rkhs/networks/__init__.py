"""Networks: pixels in [0, 1] to logits, normalisation inside; one family a file."""

from typing import Annotated

from pydantic import Field

from robustbench_rkhs.networks.convolutional import Convolutional
from robustbench_rkhs.networks.kwl import DNN, KWL
from robustbench_rkhs.networks.lipschitz_bounded import LipschitzBounded
from robustbench_rkhs.networks.lipschitz_resnet import LipschitzResNet, LiResNet
from robustbench_rkhs.networks.mlp import MLP
from robustbench_rkhs.networks.sequence import SequenceConvolutional
from robustbench_rkhs.networks.vgg import VGG

Network = Annotated[
    VGG | MLP | Convolutional | LipschitzBounded | KWL | DNN | LipschitzResNet | LiResNet | SequenceConvolutional,
    Field(discriminator="name"),
]
"""Any network, chosen by `name`."""

__all__ = [
    "DNN",
    "KWL",
    "MLP",
    "VGG",
    "Convolutional",
    "LiResNet",
    "LipschitzBounded",
    "LipschitzResNet",
    "Network",
    "SequenceConvolutional",
]
