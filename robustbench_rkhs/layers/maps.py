"""Base of layers with a constrained matrix, dense or per frequency, and an activation: y = activation(M x + b)."""

import math
from abc import abstractmethod

import torch
from jaxtyping import Complex, Float, Float64
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.layers.activations import Activation, activated, activation_layers, even
from robustbench_rkhs.layers.fourier import FourierConv, multiplied
from robustbench_rkhs.layers.lowered import chain, linear, lowered
from robustbench_rkhs.lipschitz import Bound, Uncertifiable, affine, constants, fan
from robustbench_rkhs.lipschitz.bounds import spectral, weights
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.precision import without_autocast


class DenseMap(nn.Module):
    """y = activation(M x + b) on the last dimension, M computed from free parameters."""

    def __init__(self, in_features: int, out_features: int, activation: Activation) -> None:
        super().__init__()
        if min(in_features, out_features) < 1:
            raise UserError(f"{type(self).__name__}: expected sizes of at least 1, found {in_features} and {out_features}")
        self.in_features, self.out_features = in_features, out_features
        even(type(self).__name__, activation, out_features)
        self.activation = activation
        self.bias = nn.Parameter(torch.zeros(out_features))

    @abstractmethod
    def matrix(self) -> Float64[Tensor, "outputs inputs"]:
        """M, in float64 (which is certified) where the device supports it."""

    def wide(self, parameter: Tensor) -> Tensor:
        """A parameter in the precision in which the matrix is computed."""
        return parameter.to(torch.float32 if parameter.device.type == "mps" else torch.float64)

    def forward(self, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch outputs"]:
        with without_autocast(x):
            matrix = self.matrix()
        return activated(functional.linear(x, matrix.to(x.dtype), self.bias), self.activation)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, activation={self.activation!r}"


class FourierMap(FourierConv):
    """y = activation(M x + b), M a matrix for each frequency of the torus."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding_mode: str, activation: Activation
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding_mode)
        even(type(self).__name__, activation, out_channels)
        self.activation = activation
        self.bias = nn.Parameter(torch.zeros(out_channels))

    @abstractmethod
    def matrices(self, torus: tuple[int, int]) -> Complex[Tensor, "half outputs folded"]:
        """M at each frequency."""

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch outputs rows columns"]:
        with without_autocast(x):
            return activated(self.mapped(x, self.matrices(self.torus(*x.shape[-2:]))), self.activation)

    def mapped(self, x: Tensor, matrices: Tensor) -> Tensor:
        """M x + b for given matrices."""
        torus, (rows, columns) = self.torus(*x.shape[-2:]), self.places(*x.shape[-2:])
        x = self.folded(x if x.dtype == torch.float64 else x.float())
        y = multiplied(x, matrices.to(x.dtype.to_complex()), torus)[..., :rows, :columns]
        return y + self.bias.to(y.dtype)[:, None, None]


class FourierAffine(nn.Module):
    """M x + b of a Fourier layer: the plain operation. Matrices are computed once per image size; the weights must not change.

    It has no rule; certificates use the layer that it comes from.
    """

    def __init__(self, layer: FourierMap) -> None:
        super().__init__()
        self.layer = layer
        self._known: dict[tuple[int, int], Tensor] = {}

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch outputs rows columns"]:
        torus = self.layer.torus(*x.shape[-2:])
        if torus not in self._known:
            with torch.inference_mode(False), torch.no_grad():
                self._known[torus] = self.layer.matrices(torus).to(torch.complex64 if x.dtype != torch.float64 else None)
        return self.layer.mapped(x, self._known[torus])


def dense_bound(module: DenseMap, shape: tuple[int, ...]) -> Bound:
    """The norm of the matrix as evaluated in float64 from the stored parameters; each family registers its own."""
    for name, parameter in module.named_parameters():
        weights(parameter, name)
    if shape != (module.in_features,):
        raise Uncertifiable(f"expected {module.in_features} features, found an input of shape {shape}")
    return Bound(spectral(weights(module.matrix(), "matrix")), (module.out_features,))


def fourier_bound(module: FourierMap, shape: tuple[int, ...]) -> Bound:
    """The largest norm over the frequencies; folding and padding are isometries, cropping contracts."""
    height, width = module.checked(shape)
    matrices = module.matrices(module.torus(height, width))
    if not matrices.isfinite().all():
        raise Uncertifiable("its matrices are not finite: the weights are too large")
    return Bound(spectral(matrices), (module.out_channels, *module.places(height, width)))


@lowered.register
def _(layer: DenseMap) -> nn.Module:
    return chain(linear(layer.matrix().to(layer.bias.dtype), layer.bias), *activation_layers(layer.activation))


@lowered.register
def _(layer: FourierMap) -> nn.Module:
    return chain(FourierAffine(layer), *activation_layers(layer.activation))


for _kind in (DenseMap, FourierMap):
    affine.register(_kind, lambda module: module.activation == "none")


@fan.register
def _(module: DenseMap, inputs: int, outputs: int) -> tuple[int, int]:
    return module.in_features, module.out_features


@fan.register
def _(module: FourierMap, inputs: int, outputs: int) -> tuple[int, int]:
    """Two transforms and a product, each with sums over at most the whole torus."""
    both = 4 * (inputs + outputs + module.folded_channels * module.taps**2 * module.stride**2)
    return both, both


@constants.register(DenseMap)
@constants.register(FourierMap)
def _(module: DenseMap | FourierMap, shape: tuple[int, ...]) -> float:
    """The bias once for each position where it is added, negative parts included."""
    copies = 1 if isinstance(module, DenseMap) else math.prod(module.places(*shape[-2:]))
    return float(math.sqrt(copies) * module.bias.double().norm().item())
