"""The attack engine for training: the model in its current mode, nothing counted, no second queries."""

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from robustbench_rkhs.attacks.objective import input_gradient, margin
from robustbench_rkhs.attacks.passes import Slope, Value, boundaries_of
from robustbench_rkhs.nodes.threat_model import Box, Norm


class TrainingEngine:
    """Images under attack for one training step: the model in its own mode, its weights left to take gradients.

    Each image keeps its iterate of lowest margin and leaves once that is misclassified. Queries without `keep` leave nothing
    behind; the last iterate of a single run is then taken without a query. This says nothing about robustness: only the engine
    of an evaluation counts adversarial images.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *image"],
        y: Int[Tensor, " batch"],
        keys: Int[Tensor, " batch"],
        *,
        norm: Norm,
        box: Box,
        eps: float,
        seed: int,
        unseen: bool,
    ) -> None:
        self.model, self.x, self.y, self.keys = model, x, y, keys
        self.norm, self.box, self.seed, self.unseen = norm, box, seed, unseen
        self.eps: Float64[Tensor, " batch"] = torch.full((len(x),), eps, dtype=torch.float64, device=x.device)
        self.images = x.clone()
        self.lowest: Float[Tensor, " batch"] = x.new_full((len(x),), torch.inf)
        """Margin of the image that is kept."""

    def open(self) -> Int[Tensor, " some"]:
        return (self.lowest >= 0).nonzero().flatten()

    def standing(self, at: Int[Tensor, " some"]) -> Bool[Tensor, " some"]:
        return self.lowest[at] >= 0

    def slope(self, at: Int[Tensor, " some"], images: Float[Tensor, "some *image"], value: Value, *, keep: bool = True) -> Slope:
        """As in the engine; no backward pass once every image is misclassified."""
        leaf, rows = images.detach().requires_grad_(), torch.arange(len(at), device=at.device)
        with torch.enable_grad():
            logits = self.model(leaf)
            if keep:
                self._seen(at, images, logits.detach())
                rows = self.standing(at).nonzero().flatten()
                if not len(rows):
                    return Slope(logits.detach(), self.lowest[at], torch.zeros_like(images), self.lowest[at] < 0)
            lowered = value(logits, torch.arange(len(at), device=at.device))
            gradient = input_gradient(lowered[rows].sum() if keep else lowered.sum(), leaf)
        return Slope(logits.detach(), lowered.detach(), gradient, self.lowest[at] < 0)

    def nearest(self, at: Int[Tensor, " some"], count: int) -> Int[Tensor, "some few"]:
        """As in the engine, among all classes and without the box."""
        far = boundaries_of(self.model, self.x[at], self.y[at], self.norm)
        return far.argsort(dim=1)[:, : min(count, far.shape[1] - 1)]

    def pull(self, at: Int[Tensor, " some"], images: Float[Tensor, "some *image"], wrong: Bool[Tensor, " some"]) -> None:
        """Rounding does not matter in training."""

    def judge(self, at: Int[Tensor, " some"], images: Float[Tensor, "some *image"]) -> None:
        """The last iterate of a run: taken as it is for a single run, else only where its margin is the lowest."""
        if self.unseen:
            self.images[at] = images
        else:
            with (
                torch.enable_grad()
            ):  # under autocast the weights' low-precision copies are kept: made here, they need gradients too
                logits = self.model(images).detach()
            self._seen(at, images, logits)

    def _seen(self, at: Tensor, images: Tensor, logits: Tensor) -> None:
        now = margin(logits, self.y[at]).nan_to_num(nan=torch.inf)
        better = now < self.lowest[at]
        self.images[at[better]], self.lowest[at[better]] = images[better], now[better].to(images.dtype)
