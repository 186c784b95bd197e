"""Networks: pixels in [0, 1] to logits, normalisation inside; one family a file."""

from typing import Annotated

from pydantic import Field

from robustbench_rkhs.networks.convolutional import Convolutional
from robustbench_rkhs.networks.lipschitz_bounded import LipschitzBounded
from robustbench_rkhs.networks.mlp import MLP
from robustbench_rkhs.networks.mnist import MNISTStable
from robustbench_rkhs.networks.resnet import ResNet
from robustbench_rkhs.networks.vgg import VGG

Network = Annotated[VGG | ResNet | MNISTStable | MLP | Convolutional | LipschitzBounded, Field(discriminator="name")]
"""Any network, chosen by `name`."""

__all__ = ["MLP", "VGG", "Convolutional", "LipschitzBounded", "MNISTStable", "Network", "ResNet"]
