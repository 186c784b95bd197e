"""Spectral normalisation (PyTorch's) on the weights of any network."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator
from torch import nn
from torch.nn.utils import parametrizations

from robustbench_rkhs.networks.base import NetworkNode
from robustbench_rkhs.networks.mlp import MLP
from robustbench_rkhs.nodes.node import UserError

if TYPE_CHECKING:
    from robustbench_rkhs.networks import Network


class SpectrallyNormalised(NetworkNode):
    r"""A network with each linear and convolutional weight divided by an estimate of its largest singular value.

    .. math:: \bar W = W / (u^\top W v), \qquad v \leftarrow W^\top u / \lVert W^\top u \rVert, \quad
              u \leftarrow W v / \lVert W v \rVert

    u and v are updated by `iterations` steps of the power method per pass in train mode, are fixed in eval mode (and in the passes
    of penalties), and are saved with the weights. As u^T W v <= sigma(W), layers come out at or slightly above norm one;
    and a convolution's W is its reshaped kernel (C_out x C_in k k), whose norm can be below the operator's by a factor of
    up to k. So this proves nothing by itself: the Lipschitz bound is computed afterwards from the final weights.
    A running mean of the weights (`ema`) uses u and v of the last step, which fit it only roughly.
    Cost: two products with each weight per pass. Raises UserError where the network inside has no such weight.
    Source: Miyato et al., ICLR 2018; `torch.nn.utils.parametrizations.spectral_norm`.
    """

    name: Literal["spectrally_normalised"] = "spectrally_normalised"
    network: "Network" = MLP()
    """The network inside, with its own normalisation of pixels."""
    iterations: int = Field(1, ge=1, le=10_000)
    """Steps of the power method at each pass in train mode (15 at the start)."""

    @model_validator(mode="after")
    def _normalisation_is_inside(self) -> "SpectrallyNormalised":
        if self.mean or self.std:
            raise ValueError("spectrally_normalised: give mean and std to the network inside")
        return self

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Sequential:
        network = self.network.build(shape, classes)
        kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
        free = [module for module in network.modules() if isinstance(module, kinds) and "weight" in module._parameters]
        if not free:
            raise UserError(f"spectrally_normalised: {self.network.label} has no free linear or convolutional weight")
        for module in free:
            parametrizations.spectral_norm(module, n_power_iterations=self.iterations)
        return network
