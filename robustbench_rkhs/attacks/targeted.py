"""Targeted attacks: any attack, run towards a given class."""

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from robustbench_rkhs.attacks.base import Attack, Attacked
from robustbench_rkhs.attacks.engine_attack import EngineAttack
from robustbench_rkhs.nodes.node import UserError


class Towards(nn.Module):
    r"""The two-class model of a targeted attack: the largest other logit, and the target's logit.

    .. math:: g(x) = \big(\max_{j \ne t} f_j(x), \; f_t(x)\big)

    g is misclassified, from class 0, exactly where the model predicts t. So any attack on g is the targeted attack on the
    model: its margin is the targeted margin, and its nearest boundary is that of class t. Logits that are not finite do not
    count as the target.
    """

    def __init__(self, model: nn.Module, target: int) -> None:
        super().__init__()
        self.model, self.target = model, target

    def forward(self, x: Float[Tensor, "batch *image"]) -> Float[Tensor, "batch 2"]:
        logits = self.model(x)
        if not 0 <= self.target < logits.shape[1] or logits.shape[1] < 2:
            raise UserError(f"target {self.target}: expected another of the model's classes 0 to {logits.shape[1] - 1}")
        others = torch.arange(logits.shape[1], device=logits.device) != self.target
        both = torch.stack([logits[:, others].amax(1), logits[:, self.target]], 1)
        missed = torch.tensor([1.0, 0.0], dtype=both.dtype, device=both.device)
        return torch.where(logits.isfinite().all(1, keepdim=True), both, missed)


def attack_towards(
    attack: Attack,
    model: nn.Module,
    x: Float[Tensor, "batch *image"],
    target: Int[Tensor, " batch"],
    keys: Int[Tensor, " batch"],
    eps: Float64[Tensor, " batch"] | None = None,
) -> Attacked:
    """The attack, run until the model predicts each image's target; `eps` as for the attacks of our engine.

    Works with any attack: images that share a target are attacked together, as images of class 0 of `Towards`.
    """
    if isinstance(attack, EngineAttack) and attack.straight_through:
        inner = tuple(f"model.{name}" for name in attack.straight_through)
        attack = attack.model_copy(update={"straight_through": inner})
    images, broken = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    forwards = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    backwards, told = torch.zeros_like(forwards), True
    for aim in target.unique().tolist():
        rows = (target == aim).nonzero().flatten()
        given = (Towards(model, aim), x[rows], torch.zeros_like(target[rows]), keys[rows])
        found = attack(*given) if eps is None or not isinstance(attack, EngineAttack) else attack(*given, eps[rows])
        images[rows], forwards[rows], backwards[rows] = found.images.to(x), found.forwards, found.backwards
        told &= found.broken is not None
        if found.broken is not None:
            broken[rows] = found.broken
    return Attacked(images, forwards, backwards, broken if told else None)
