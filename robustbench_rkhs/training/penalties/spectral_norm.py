"""Spectral-norm penalty: the sum of the layers' squared spectral norms, an upper bound related to the RKHS norm."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from robustbench_rkhs.data import Split
from robustbench_rkhs.nodes.node import Real, UserError
from robustbench_rkhs.runtime.modes import per_image
from robustbench_rkhs.training.penalties.base import PenaltyNode

KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
START = 20
"""Power iterations before the first step."""
Apply = Callable[[Tensor], Tensor]


class SpectralNorm(PenaltyNode):
    r"""Penalise the largest singular value of every linear and convolutional weight.

    .. math:: \lambda \sum_l \sigma_1(W_l)^2 = \lambda \sum_l \lVert W_l v_l \rVert_2^2

    v_l, the top right singular vector, is not differentiated; the gradient is still 2 lambda sigma_1 u v^T.
    `power` approaches it by `iterations` normalised power iterations per step, starting from the last step's vector
    (`prepare` starts with 20; without `prepare` every call does): a lower bound, good enough for training and
    never a certificate. `svd` decomposes exactly at each step.
    `reshaped` uses the C_out x (C_in k k) matrix, as published; the operator norm of a 3x3 convolution may be three times its
    norm. `operator` uses the convolution itself at the layer's input size: by power iteration through the
    convolution and its adjoint, or (svd) the largest singular value over the frequencies of the smallest torus that contains
    image and kernel (exact for circular padding that keeps the size at stride one; an upper bound for zero padding). Linear
    layers are the same in both.
    Cost of `power`: 2 iterations + 1 products per layer (`operator`: a convolution of one image each); of `svd`: a symmetric
    eigendecomposition of the smaller side, or a singular value decomposition for each frequency, which is slow.
    Raises UserError for `svd` with `operator` on convolutions other than 2-D with zero or circular padding.
    Source: Yoshida & Miyato, 2017; Bietti et al., ICML 2019; the spectrum on a torus, Sedghi et al., ICLR 2019.
    """

    name: Literal["spectral_norm"] = "spectral_norm"
    weight: Real = Field(0.01, ge=0)
    """Multiplier lambda."""
    method: Literal["power", "svd"] = "power"
    """How the singular vector is found."""
    operator: Literal["reshaped", "operator"] = "reshaped"
    """The norm: of the reshaped kernel (as published), or of the operator."""
    iterations: int = Field(2, ge=1)
    """Power iterations per step."""

    _vectors: dict[str, Tensor] = PrivateAttr(default_factory=dict)
    _sizes: dict[str, tuple[int, ...]] = PrivateAttr(default_factory=dict)

    def prepare(self, model: nn.Module, split: Split, seed: int) -> "SpectralNorm":
        """Learn each layer's input size from one image, and start the power iteration."""
        ready = self.model_copy()
        ready._sizes = self._input_sizes(model, split.x[:1])
        ready._vectors = {}
        if self.method == "power":
            for name, module in layers(model):
                apply, shape = self._map(module, ready._sizes.get(name))
                ready._vectors[name] = iterate(apply, started(shape, module), START)
        return ready

    def state(self) -> dict[str, Tensor]:
        return {name: vector.clone() for name, vector in self._vectors.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        self._vectors.clear()
        self._vectors.update({name: vector.clone() for name, vector in state.items()})

    def __call__(
        self, model: nn.Module, x: Float[Tensor, "batch *image"], y: Tensor, keys: Int[Tensor, " batch"] | None = None
    ) -> Float[Tensor, ""]:
        total = torch.zeros((), device=x.device)
        with torch.autocast(x.device.type, enabled=False):
            sizes = self._sizes or self._input_sizes(model, x[:1])
            for name, module in layers(model):
                if self.method == "svd" and self.operator == "operator" and not isinstance(module, nn.Linear):
                    total = total + torus_square(module, sizes[name])
                    continue
                apply, shape = self._map(module, sizes.get(name))
                if self.method == "svd":
                    vector = top_right(module.weight.detach().flatten(1))  # type: ignore[operator]
                elif name in self._vectors:
                    vector = iterate(apply, self._vectors[name].to(x.device), self.iterations)
                    self._vectors[name] = vector
                else:
                    vector = iterate(apply, started(shape, module), START)
                total = total + apply(vector).float().square().sum()
        return self.weight * total

    def _map(self, module: nn.Module, size: tuple[int, ...] | None) -> tuple[Apply, tuple[int, ...]]:
        """The linear map whose norm is penalised, as a function of one input, and that input's shape."""
        weight: Tensor = module.weight  # type: ignore[assignment]
        if self.operator == "reshaped" or isinstance(module, nn.Linear):
            matrix = weight.flatten(1)
            return lambda v: matrix @ v, (matrix.shape[1],)
        assert size is not None
        return lambda v: module._conv_forward(v[None], weight, None)[0], size  # type: ignore[operator]

    def _input_sizes(self, model: nn.Module, x: Tensor) -> dict[str, tuple[int, ...]]:
        """Input shape of each convolution, without the batch, from one forward pass; nothing for `reshaped`."""
        if self.operator == "reshaped":
            return {}
        sizes: dict[str, tuple[int, ...]] = {}

        def remember(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: Any) -> None:
                sizes[name] = tuple(inputs[0].shape[1:])

            return hook

        hooks = [module.register_forward_pre_hook(remember(name)) for name, module in layers(model)]
        try:
            with per_image(model), torch.no_grad():
                model(x)
        finally:
            for hook in hooks:
                hook.remove()
        return sizes


def layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Name and module of every plain linear or convolutional weight (parametrised ones are excluded)."""
    return [(n, m) for n, m in model.named_modules() if isinstance(m, KINDS) and "weight" in m._parameters]


def started(shape: tuple[int, ...], module: nn.Module) -> Tensor:
    """A fixed random unit vector, the same on every device and process."""
    vector = torch.randn(shape, generator=torch.Generator().manual_seed(math.prod(shape)))
    result: Tensor = (vector / vector.norm()).to(module.weight)
    return result


def iterate(apply: Apply, vector: Tensor, iterations: int) -> Tensor:
    """Power iteration v <- A^T A v / ||A^T A v||; a vector that A maps to zero stays."""
    for _ in range(iterations):
        with torch.enable_grad():
            inside = vector.detach().requires_grad_()
            outside = apply(inside)
            if not outside.requires_grad:
                return vector
            middle = normalised(outside.detach(), torch.zeros_like(outside))
            (back,) = torch.autograd.grad(outside, inside, middle)  # the adjoint, for any padding
        vector = normalised(back.detach(), vector)
    return vector.detach()


def normalised(vector: Tensor, otherwise: Tensor) -> Tensor:
    """The normalised vector, or `other` where it is zero."""
    peak = vector.abs().amax()
    scaled = vector / torch.where(peak > 0, peak, 1)  # no square under- or overflows
    return torch.where(peak > 0, scaled / torch.where(peak > 0, scaled.norm(), 1), otherwise)


@torch.no_grad()
def top_right(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, " columns"]:
    """The top right singular vector, by a symmetric eigendecomposition of the smaller side."""
    rows, columns = matrix.shape
    if columns <= rows:
        result: Tensor = torch.linalg.eigh(matrix.T @ matrix).eigenvectors[:, -1]
        return result
    left = torch.linalg.eigh(matrix @ matrix.T).eigenvectors[:, -1]
    return normalised(matrix.T @ left, torch.zeros_like(matrix[0]))


def torus_square(module: nn.Module, size: tuple[int, ...]) -> Float[Tensor, ""]:
    """Squared norm of the stride-one circular convolution on the smallest torus that contains image and kernel.

    Only the top singular pair at the top frequency is differentiated.
    """
    if not isinstance(module, nn.Conv2d) or module.padding_mode not in ("zeros", "circular"):
        raise UserError("spectral_norm: svd with operator covers 2-D convolutions with zero or circular padding; use method: power")
    weight = module.weight.float()
    height, width = weight.shape[2:]
    reach = [step * (side - 1) for step, side in zip(module.dilation, (height, width), strict=True)]
    extra = (0, 0) if module.padding_mode == "circular" else reach
    points = [max(side + more, far + 1) for side, more, far in zip(size[-2:], extra, reach, strict=True)]
    waves = [
        torch.exp(-2j * math.pi / n * torch.outer(torch.arange(m), step * torch.arange(taps)).double())
        for n, m, step, taps in zip(points, (points[0], points[1] // 2 + 1), module.dilation, (height, width), strict=True)
    ]
    row, column = (wave.to(torch.complex64).to(weight.device) for wave in waves)
    groups = weight.detach().view(module.groups, -1, *weight.shape[1:])
    with torch.no_grad():
        spectrum = torch.einsum("goiht,ah,bt->abgoi", groups.to(row.dtype), row, column)
        values = torch.linalg.svdvals(spectrum)[..., 0]
        top = int(values.flatten().argmax())
        group = top % module.groups
        a, b = divmod(top // module.groups, len(column))
        right = torch.linalg.svd(spectrum[a, b, group], full_matrices=False).Vh[0].conj()
    kernel = weight.view_as(groups)[group].to(row.dtype)
    at_top = torch.einsum("oiht,h,t->oi", kernel, row[a], column[b])
    result: Tensor = (at_top @ right).abs().square().sum()
    return result
