"""What changes no prediction must hide no adversarial example: shifts, scales, saturation, permuted and copied classes."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from robustbench_rkhs.attacks import Attack
from robustbench_rkhs.attacks.ball import distances
from robustbench_rkhs.nodes.threat_model import Norm
from robustbench_rkhs.testing.must import must
from robustbench_rkhs.testing.oracles import Affine, affine

Change = Callable[[Tensor, Tensor], Tensor]
"""(logits, images) -> outputs that predict the same class."""


def column_by_column(change: Change) -> Change:
    """The same, class by class and stacked again, so that a model's graph doesn't show that it keeps the order."""
    return lambda logits, x: torch.stack([change(column[:, None], x)[:, 0] for column in logits.unbind(1)], 1)


def brightness(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1, keepdim=True)


CHANGES: Mapping[str, Change] = {
    "shift by -1e6": lambda logits, x: logits - 1e6,
    "shift by 5e6": lambda logits, x: logits + 5e6,
    "a shift that depends on the image": lambda logits, x: logits + 1e4 * brightness(x),
    "a shift in the layer": column_by_column(lambda logits, x: logits + 1e6),
    "such a shift in the layer": column_by_column(lambda logits, x: logits + 1e4 * brightness(x)),
    "scale 1e-6": lambda logits, x: 1e-6 * logits,
    "scale 1e6 by the image": lambda logits, x: 1e5 * logits * brightness(x),
    "permuted classes": lambda logits, x: logits.flip(1),
    "a copy of each class": lambda logits, x: torch.cat([logits, logits], 1),
    "saturated": lambda logits, x: torch.tanh(50 * (logits - logits.topk(2, 1).values.mean(1, keepdim=True))),
    "temperature 1e-6": lambda logits, x: (logits / 1e-6).log_softmax(1),
    "rounded": lambda logits, x: (logits * 1e3).round(),
}
"""By name. Logits are large enough that float32 keeps their margins at each shift; `permuted classes` permutes labels too."""


class Changed(nn.Module):
    """A model and a change of its logits."""

    def __init__(self, model: nn.Module, change: Change) -> None:
        super().__init__()
        self.model, self.change = model, change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.model(x), x)


def changed(oracle: Affine, name: str) -> Affine:
    """The oracle with one of CHANGES; only the images that are still right, as float32 may lose the others' margin."""
    model = Changed(oracle.model, CHANGES[name]).eval()
    classes = oracle.model(oracle.x[:1]).shape[1]
    y = classes - 1 - oracle.y if name == "permuted classes" else oracle.y
    with torch.no_grad():
        right = model(oracle.x).argmax(1) == y
    return Affine(model, oracle.x[right], y[right], oracle.l2[right], oracle.linf[right])


def check_invariance(attack: Attack, name: str, norm: Norm = "l2", factor: float = 1.05) -> None:
    """An attack comes within `factor` of the exact distances of an affine model, whose logits are changed as `name` says."""
    oracle = changed(affine(5, (1, 4, 4), scale=1e5, seed=4, images=6), name)
    must(len(oracle.x) >= 4, f"{name}: the change itself alters predictions on these images")
    exact = oracle.distance(norm)
    eps = (factor * exact.median()).item()
    found = attack.aimed(norm=norm, eps=eps, seed=0)(oracle.model, oracle.x, oracle.y, torch.arange(len(oracle.x)))
    with torch.no_grad():
        fell = oracle.model(found.images).argmax(1) != oracle.y
    near = torch.ones_like(fell) if attack.minimal_norm else exact <= eps / factor * (1 - 1e-3)
    must(fell[near].all(), f"{name}: {int((~fell[near]).sum())} of {int(near.sum())} images stand that a plain affine model loses")
    if attack.minimal_norm:
        ratio = (distances(oracle.x, found.images, norm) / exact).max()
        must(ratio <= factor * (1 + 2e-3), f"{name}: expected at most {factor:g} of the exact distance, found {ratio:.4g}")
