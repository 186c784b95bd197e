"""A variational autoencoder of the training images."""

import math
from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.data import Split
from robustbench_rkhs.nodes.node import Real, UserError
from robustbench_rkhs.runtime.counter_rng import mix
from robustbench_rkhs.training.samplers.base import SamplerNode, Source, normals

Positive = Annotated[Real, Field(gt=0)]
INFLATION = 3.0
"""Factor of the standard deviations in the published spread."""


class Fitted(NamedTuple):
    """A trained autoencoder: the distribution of its latent variables, and the loss of every iteration."""

    model: "Autoencoder"
    mean: Float[Tensor, " latent"]
    std: Float[Tensor, " latent"]
    losses: Float[Tensor, " iterations"]


class VAESampler(SamplerNode):
    r"""Decoded latent vectors of a variational autoencoder trained on the training images.

    .. math:: \min \frac1n \sum_i \Big[ \sum_p BCE(\hat x_{ip}, x_{ip})
              + \tfrac12 \sum_j \big( e^{\ell_{ij}} + \mu_{ij}^2 - 1 - \ell_{ij} \big) \Big], \qquad
              \hat x = \mathrm{dec}(\mu + e^{\ell/2} \epsilon), \quad s = \mathrm{dec}(z)

    mu, l: the encoder's means and log variances. The published form is dense, 784-128-100-128-784 with ReLU (240,344 numbers
    on MNIST) and weights from N(0, 2 / fan in), 10,000 steps of Adam at 1e-3 on batches of 20; here the images stay in [0, 1].
    With `squashed: [m, s]` it learns sigmoid((x - m) / s) instead, as published, and a decoded t comes back as the pixels
    m + s t: a network that normalises by m and s then sees t itself, as in the published code (on MNIST within [0.40, 0.94]).
    Spread `published`: z from N(mean mu, (3 e^(mean l / 2))^2), means over the last training batch; `prior`: z from N(0, I).
    Cost of training: `iterations` steps of a small network (about ten seconds on one core at the defaults); of a sample: one
    pass of the decoder. Raises UserError where the images are not in [0, 1] or too small, or the training diverges.
    Source: Kingma & Welling, ICLR 2014, as used in arXiv 1710.06703.
    """

    name: Literal["vae"] = "vae"
    kind: Literal["dense", "convolutional"] = "dense"
    """Two dense layers each way, or two 3x3 convolutions of stride 2 and a dense layer."""
    hidden: int = Field(128, ge=1)
    """Width of the hidden layer."""
    latent: int = Field(100, ge=1)
    """Number of latent variables."""
    spread: Literal["prior", "published"] = "published"
    """The distribution of the latent variables."""
    iterations: int = Field(10_000, ge=1)
    """Steps of Adam."""
    batch_size: int = Field(20, ge=1)
    """Images per step."""
    lr: Real = Field(1e-3, gt=0)
    """Learning rate."""
    squashed: tuple[Real, Positive] | None = None
    """Mean and standard deviation before a sigmoid, as published (MNIST: 0.1307, 0.3081); default: the images as they are."""

    def prepare(self, split: Split, seed: int) -> Source:
        fitted = self.fit(split, seed)
        mean, std = self.squashed or (0.0, 1.0)

        @torch.no_grad()
        def source(keys: Int[Tensor, " batch"], count: int) -> Float[Tensor, "samples *image"]:
            z = normals(keys, seed, count, (self.latent,)).to(fitted.mean)
            result: Tensor = mean + std * fitted.model.decode(fitted.mean + fitted.std * z).sigmoid()
            return result

        return source

    def fit(self, split: Split, seed: int) -> Fitted:
        """Train the autoencoder; all random numbers come from the seed, and the global random state is unchanged."""
        if split.box != "unit" or split.x.min() < 0 or split.x.max() > 1:
            raise UserError(
                f"sampler 'vae' needs images in [0, 1], found {split.x.min():.3g} to {split.x.max():.3g} in {split.data!r}"
            )
        images = split.x if self.squashed is None else ((split.x - self.squashed[0]) / self.squashed[1]).sigmoid()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix(seed, 0x7AE))
            model = Autoencoder(self, split.shape).to(split.x.device)
        generator = torch.Generator().manual_seed(mix(seed, 0x7AE, 1))
        optimizer = torch.optim.Adam(model.parameters(), lr=self.lr)
        losses, x = [], images[:0]
        with torch.enable_grad():
            for chosen in _batches(len(split), self.batch_size, self.iterations, generator):
                x = images[chosen.to(images.device)]
                loss = model.loss(x, torch.randn(len(x), self.latent, generator=generator).to(x))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
        model.requires_grad_(False)
        history = torch.stack(losses).cpu()
        if not math.isfinite(history[-1].item()):
            raise UserError(f"sampler 'vae': its training diverged within {self.iterations} iterations; lower its lr {self.lr:g}")
        if self.spread == "prior":
            return Fitted(model, x.new_zeros(self.latent), x.new_ones(self.latent), history)
        mean, log_variance = (part.mean(0) for part in model.encode(x))
        return Fitted(model, mean, INFLATION * (log_variance / 2).exp(), history)


class Autoencoder(nn.Module):
    """Encoder to means and log variances, decoder to the logits of pixels."""

    def __init__(self, node: VAESampler, shape: tuple[int, ...]) -> None:
        super().__init__()
        size, hidden, latent = math.prod(shape), node.hidden, node.latent
        if node.kind == "dense":
            self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(size, hidden), nn.ReLU())
            rebuild = nn.Unflatten(1, shape)
            self.decode = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, size), rebuild)
        else:
            if len(shape) != 3 or min(shape[1:]) < 4:
                raise UserError(f"a convolutional VAE needs images of at least 4x4 pixels, found shape {shape}")
            channels, whole = shape[0], shape[1:]
            half, quarter = (tuple(-(-side // step) for side in whole) for step in (2, 4))
            inner = 32 * math.prod(quarter)
            down = [nn.Conv2d(channels, 16, 3, 2, 1), nn.ELU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ELU(), nn.Flatten()]
            self.trunk = nn.Sequential(*down, nn.Linear(inner, hidden), nn.ELU())
            up = [nn.Linear(latent, hidden), nn.ELU(), nn.Linear(hidden, inner), nn.ELU(), nn.Unflatten(1, (32, *quarter))]
            up += [nn.Upsample(half), nn.Conv2d(32, 16, 3, padding=1), nn.ELU()]
            self.decode = nn.Sequential(*up, nn.Upsample(whole), nn.Conv2d(16, channels, 3, padding=1))
        self.mean, self.log_variance = nn.Linear(hidden, latent), nn.Linear(hidden, latent)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.normal_(module.weight, std=math.sqrt(2 / module.weight[0].numel()))
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def encode(self, x: Float[Tensor, "batch *image"]) -> tuple[Float[Tensor, "batch latent"], Float[Tensor, "batch latent"]]:
        """Means and log variances of the latent variables."""
        features = self.trunk(x)
        return self.mean(features), self.log_variance(features)

    def loss(self, x: Float[Tensor, "batch *image"], noise: Float[Tensor, "batch latent"]) -> Float[Tensor, ""]:
        """The negative evidence bound per image, in nats."""
        mean, log_variance = self.encode(x)
        pixels = self.decode(mean + (log_variance / 2).exp() * noise)
        missed = functional.binary_cross_entropy_with_logits(pixels, x, reduction="sum")
        divergence = 0.5 * (log_variance.exp() + mean.square() - 1 - log_variance).sum()
        return (missed + divergence) / len(x)


def _batches(count: int, size: int, iterations: int, generator: torch.Generator) -> Iterator[Int[Tensor, " size"]]:
    """Positions of each iteration's images: repeated passes over all images, each in a new order."""
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(iterations):
        while len(order) < size:
            order = torch.cat([order, torch.randperm(count, generator=generator)])
        yield order[:size]
        order = order[size:]
