"""Conformance checks of losses and penalties: finite, differentiable, model left unchanged."""

import torch
from torch import Tensor, nn

from robustbench_rkhs.testing.must import left_as_it_was, must
from robustbench_rkhs.training.losses.base import LossNode
from robustbench_rkhs.training.penalties.base import PenaltyNode


def check_penalty(penalty: PenaltyNode, model: nn.Module | None = None) -> None:
    """All checks of a penalty, on a small network of images (1, 4, 4) and four classes or on `model`."""
    model = model or small_network()
    value = scalar_of(penalty, model, "a penalty")
    must(value >= 0, f"a penalty must not be negative, found {value.item():.4g}")


def check_loss(loss: LossNode, model: nn.Module | None = None) -> None:
    """All checks of a loss, on a small network of images (1, 4, 4) and four classes or on `model`; errors must raise it."""
    model = model or small_network()
    scalar_of(loss, model, "a loss")
    x, y = images()
    told = torch.cat([x.flatten(1)[:, :12], nn.functional.one_hot(y, 4)], 1).view(-1, 1, 4, 4)
    right, wrong = (loss(reader(shift), told, y, torch.arange(6)) for shift in (0, 1))
    must(right < wrong, "a loss must be higher where the model errs")


def scalar_of(objective: LossNode | PenaltyNode, model: nn.Module, what: str) -> Tensor:
    """Its value on some images: a finite scalar with a gradient for the weights; model and images are left unchanged.

    Penalties are checked in both modes; the forward pass of a loss is that of the training step, which updates BatchNorm.
    """
    for training in (True, False) if isinstance(objective, PenaltyNode) else (False,):
        model.train(training)
        model.zero_grad()
        x, y = images()
        clean = x.clone()
        with left_as_it_was(model, what):
            value = objective(model, x, y, torch.arange(6))
        must(value.shape == () and bool(value.isfinite()), f"{what} must be a finite scalar, found {value.detach()}")
        must(torch.equal(x, clean) and not x.requires_grad, f"{what} must leave the images as they were")
        value.backward()
        grads = [one.grad for one in model.parameters() if one.grad is not None]
        must(all(bool(grad.isfinite().all()) for grad in grads), f"{what} must have finite gradients")
        must(any(bool(grad.abs().sum() > 0) for grad in grads), f"{what} must reach the weights by a gradient")
    return value.detach()


def small_network() -> nn.Sequential:
    """Convolution, BatchNorm and a linear layer, seeded, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)).eval()


def images() -> tuple[Tensor, Tensor]:
    """Six images (1, 4, 4) of four classes."""
    return torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4


def reader(shift: int = 0) -> nn.Sequential:
    """A linear model whose logits are the last four pixels, cyclically shifted by `shift` classes."""
    linear = nn.Linear(16, 4)
    model = nn.Sequential(nn.Flatten(), linear)
    with torch.no_grad():
        linear.weight.copy_(torch.cat([torch.zeros(4, 12), 4 * torch.eye(4).roll(shift, 0)], 1))
        linear.bias.zero_()
    return model.eval()
