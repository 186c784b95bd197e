"""Networks: pixels in [0, 1] to logits, normalisation inside; one family a file."""

from typing import Annotated

from pydantic import Field

from robustbench_rkhs.networks.convolutional import Convolutional
from robustbench_rkhs.networks.kwl import DNN, KWL
from robustbench_rkhs.networks.lipschitz_bounded import LipschitzBounded
from robustbench_rkhs.networks.lipschitz_resnet import LipschitzResNet, LiResNet
from robustbench_rkhs.networks.mlp import MLP
from robustbench_rkhs.networks.mnist import MNISTStable
from robustbench_rkhs.networks.resnet import ResNet
from robustbench_rkhs.networks.sequence import SequenceConvolutional
from robustbench_rkhs.networks.small_mnist import LeNet, Net
from robustbench_rkhs.networks.spectrally_normalised import SpectrallyNormalised
from robustbench_rkhs.networks.vgg import VGG

Network = Annotated[
    VGG
    | ResNet
    | MNISTStable
    | MLP
    | Convolutional
    | LipschitzBounded
    | KWL
    | DNN
    | LipschitzResNet
    | LiResNet
    | SequenceConvolutional
    | Net
    | LeNet
    | SpectrallyNormalised,
    Field(discriminator="name"),
]
"""Any network, chosen by `name`."""
SpectrallyNormalised.model_rebuild(_types_namespace={"Network": Network})  # it holds any network

__all__ = [
    "DNN",
    "KWL",
    "MLP",
    "VGG",
    "Convolutional",
    "LeNet",
    "LiResNet",
    "LipschitzBounded",
    "LipschitzResNet",
    "MNISTStable",
    "Net",
    "Network",
    "ResNet",
    "SequenceConvolutional",
    "SpectrallyNormalised",
]
