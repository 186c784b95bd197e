"""A model asked: how many classes it knows, its logits checked, what it answers."""

import torch
from torch import Tensor, nn

from robustbench_rkhs.networks.smoothed import Smoothed
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.modes import evaluating


@torch.no_grad()
def classes_of(model: nn.Module, x: Tensor) -> int:
    """How many logits the model gives for one image; its mode stays as it was. Raises UserError where it gives none."""
    home = next(iter([*model.parameters(), *model.buffers()]), x).device
    try:
        with evaluating(model):
            out = model(x.to(home))
    except (RuntimeError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"the model cannot take images of shape {tuple(x.shape[1:])}: {reason}") from None
    if not isinstance(out, Tensor) or out.dim() != 2:
        found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise UserError(f"expected logits of shape (images, classes), the model returned {found}")
    return out.shape[1]


@torch.no_grad()
def ask(model: nn.Module, x: Tensor, classes: int, batch: int = 256) -> Tensor:
    """Logits, checked. Raises UserError at a wrong shape, NaN, or probabilities in place of logits."""
    logits = []
    for images in x.split(batch):
        try:
            out = model(images)
        except (RuntimeError, ValueError, IndexError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"the model cannot take images of shape {tuple(x.shape[1:])}: {reason}") from None
        if not isinstance(out, Tensor) or out.dim() != 2 or len(out) != len(images):
            what = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise UserError(f"expected logits of shape ({len(images)}, {classes}), the model returned {what}")
        logits.append(out)
    found = torch.cat(logits) if logits else x.new_zeros(0, classes)
    if found.shape[1] != classes:
        raise UserError(f"expected logits of {classes} classes, the model returned {found.shape[1]}")
    if not found.isfinite().all():
        raise UserError(f"the model returned NaN or infinity on {int((~found.isfinite().all(1)).sum())} of {len(x)} clean images")
    if len(found) and (found >= 0).all() and ((found.sum(1) - 1).abs() < 1e-3).all():
        raise UserError("the model returns probabilities (rows sum to 1); expected logits: remove its last softmax")
    return found


@torch.no_grad()
def misclassified(model: nn.Module, x: Tensor, y: Tensor, batch: int = 256) -> Tensor:
    """Which images are misclassified; an answer that is not finite is no right answer."""
    return answered(model, x, batch) != y


@torch.no_grad()
def answered(model: nn.Module, x: Tensor, batch: int = 256) -> Tensor:
    """The class the model gives each image; -1 where its answer is not finite."""
    said = []
    for images in x.split(batch):
        logits = model(images)
        said.append(torch.where(logits.isfinite().all(1), logits.argmax(1), -1))
    return torch.cat(said) if len(x) else torch.zeros(0, dtype=torch.int64, device=x.device)


def counting(model: nn.Module) -> nn.Module:
    """What adversarial images are counted by: the model, or a smoothed one's vote by draws that no attack has seen."""
    return model.recounted() if isinstance(model, Smoothed) else model
