"""Networks: pixels in [0, 1] to logits, normalisation inside; one family per file."""

from typing import Annotated

from robustbench_rkhs.networks.base import NetworkNode
from robustbench_rkhs.networks.convolutional import Convolutional
from robustbench_rkhs.networks.kwl import DNN, KWL
from robustbench_rkhs.networks.lipschitz_bounded import LipschitzBounded
from robustbench_rkhs.networks.lipschitz_resnet import LipschitzResNet, LiResNet
from robustbench_rkhs.networks.mlp import MLP
from robustbench_rkhs.networks.mnist import MNISTStable
from robustbench_rkhs.networks.own import OwnNetwork, own_network
from robustbench_rkhs.networks.resnet import ResNet
from robustbench_rkhs.networks.sequence import SequenceConvolutional
from robustbench_rkhs.networks.small_mnist import LeNet, Net
from robustbench_rkhs.networks.spectrally_normalised import SpectrallyNormalised
from robustbench_rkhs.networks.vgg import VGG
from robustbench_rkhs.nodes.one_of import OneOf

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
    | SpectrallyNormalised
    | NetworkNode,
    OneOf(NetworkNode, "networks", own_network),
]
"""Any network: ours by `name`, an instance of NetworkNode or nn.Module, or your own as package.module:Name."""
SpectrallyNormalised.model_rebuild(_types_namespace={"Network": Network})  # it contains any network

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
    "NetworkNode",
    "OwnNetwork",
    "ResNet",
    "SequenceConvolutional",
    "SpectrallyNormalised",
]
