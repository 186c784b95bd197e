"""Predictions of a model: its class count, and its logits, checked."""

from typing import Any

import torch
from torch import Tensor, nn

from robustbench_rkhs.data.stream import BLOCK, Stream
from robustbench_rkhs.networks.smoothed import Smoothed
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import reason
from robustbench_rkhs.runtime.clock import portions
from robustbench_rkhs.runtime.modes import evaluating


@torch.no_grad()
def classes_of(model: nn.Module, x: Tensor) -> int:
    """The number of logits for one image; the model's mode is restored. Raises UserError where it returns none."""
    home = next(iter([*model.parameters(), *model.buffers()]), x).device
    with evaluating(model):
        out = checked_logits(answer(model, x.to(home)), len(x))
    return out.shape[1]


def answer(model: nn.Module, images: Tensor) -> Any:
    """The model's output for a copy of the images, which it may write into. Raises UserError with the reason where it fails."""
    try:
        return model(images.clone())
    except UserError:
        raise
    except Exception as error:  # a foreign model may raise anything
        kind = "" if isinstance(error, (RuntimeError, ValueError)) and str(error) else f"{type(error).__name__}: "
        raise UserError(f"the model cannot take images of shape {tuple(images.shape[1:])}: {kind}{reason(error)}") from None


def checked_logits(out: Any, images: int, classes: int | None = None) -> Tensor:
    """The output, checked to be logits. Raises UserError for another type or shape."""
    expected = "(images, classes)" if classes is None else f"({images}, {classes})"
    if not isinstance(out, Tensor):
        raise UserError(f"expected logits of shape {expected}, the model returned {described(out)}")
    if out.dim() != 2 or len(out) != images:
        raise UserError(f"expected logits of shape {expected}, the model returned {tuple(out.shape)}")
    if out.layout != torch.strided or out.is_quantized:
        raise UserError(f"expected dense float logits of shape {expected}, the model returned {out.layout!s}")
    if not out.is_floating_point():
        raise UserError(f"expected float logits of shape {expected}, the model returned {str(out.dtype).removeprefix('torch.')}")
    if out.shape[1] < 2:
        line = f"the model returns {out.shape[1]} logit per image, expected one for each of two classes or more"
        raise UserError(f"{line}: of a binary classifier, wrap it to return torch.cat([-z, z], 1)")
    return out


def described(out: Any) -> str:
    """A description of an output that is not a tensor, with a hint."""
    if isinstance(out, (tuple, list)):
        return f"a {type(out).__name__} of {len(out)}: pass lambda x: model(x)[0], or whichever are its logits"
    if isinstance(out, dict):
        return f"a dict of {', '.join(map(repr, list(out)[:5]))}: name its logits 'logits', or pick them in a function of images"
    return type(out).__name__


@torch.no_grad()
def raw_logits(model: nn.Module, x: Tensor, classes: int, batch: int = 256) -> Tensor:
    """Logits of the right shape, with any values. Raises UserError."""
    logits = []
    for some in portions(len(x), min(batch, BLOCK) if isinstance(x, Stream) else batch):
        images = x[some]
        logits.append(checked_logits(answer(model, images), len(images), classes))
    found = torch.cat(logits) if logits else x.new_zeros(0, classes)
    if found.shape[1] != classes:
        raise UserError(f"expected logits of {classes} classes, the model returned {found.shape[1]}")
    return found


def checked_values(found: Tensor) -> Tensor:
    """Logits of clean images. Raises UserError for NaN, or probabilities instead of logits."""
    if bad := int((~found.isfinite().all(1)).sum()):
        raise UserError(f"the model returned NaN or infinity on {bad} of {len(found)} clean images")
    if line := no_logits(found):
        raise UserError(line)
    return found


def ask(model: nn.Module, x: Tensor, classes: int, batch: int = 256) -> Tensor:
    """Logits, checked. Raises UserError for a wrong shape, NaN, or probabilities instead of logits."""
    return checked_values(raw_logits(model, x, classes, batch))


def no_logits(outputs: Tensor) -> str:
    """What outputs that sum to 1 are, in words; empty where they may be logits (those that no image changes are no softmax's)."""
    if not len(outputs) or (outputs < 0).any() or ((outputs.sum(1) - 1).abs() >= 1e-3).any():
        return ""
    if len(outputs) > 1 and (outputs == outputs[:1]).all():
        return ""
    if ((outputs == 0) | (outputs == 1)).all():
        return "the model returns one-hot rows (decisions, or a softmax that saturates); expected logits, from before that"
    return "the model returns probabilities (rows sum to 1); expected logits: remove its last softmax"


def counting(model: nn.Module) -> nn.Module:
    """The model that counts adversarial images: itself, or for a smoothed one the vote by fresh samples."""
    return model.recounted() if isinstance(model, Smoothed) else model
