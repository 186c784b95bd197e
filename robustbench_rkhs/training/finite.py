"""Detection of losses and gradients that are not finite: recorded on the device, checked from time to time."""

import torch
from torch import Tensor, nn

from robustbench_rkhs.nodes.node import UserError


class FiniteWatch:
    """Records, on the device, the first step whose loss or gradients are not finite, and the norms of that step.

    `look` does not wait for the device; `ask` does, and raises UserError with the step and the name of the parameter.
    """

    def __init__(self, model: nn.Module, device: str) -> None:
        self.names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.every = 1 if torch.device(device).type == "cpu" else 50
        """Steps between checks."""
        self.first = torch.full((), -1, dtype=torch.int64, device=device)
        self.norms = torch.zeros(len(self.names) + 1, device=device)
        """The norm of each parameter's gradient, and the absolute loss."""

    @torch.no_grad()
    def look(self, step: Tensor | int, gradients: list[Tensor | None], loss: Tensor) -> Tensor:
        """Remember this step if it is the first that is not finite; returns the l2 norm of all gradients together."""
        given = [gradient for gradient in gradients if gradient is not None]
        found = torch.stack([*torch._foreach_norm(given), loss.detach().abs().to(given[0].dtype)]).float()
        places = [i for i, gradient in enumerate(gradients) if gradient is not None]
        norms = torch.zeros_like(self.norms)
        norms[: len(places)], norms[-1] = found[:-1], found[-1]
        bad = (self.first < 0) & ~found.sum().isfinite()
        self.norms.copy_(torch.where(bad, norms, self.norms))
        self.first.copy_(torch.where(bad, step, self.first))
        self.places = places
        return found[:-1].square().sum().sqrt()

    def ask(self, epoch: int) -> None:
        """Raises UserError where a step of this epoch was not finite."""
        step = int(self.first)
        if step < 0:
            return
        norms = self.norms.tolist()
        bad = [place for number, place in enumerate(self.places) if not norms[number] < float("inf")]
        name = self.names[bad[0]] if bad else "the loss"
        raise UserError(f"not finite at epoch {epoch}, step {step}: {name} (loss {norms[-1]:.4g}); lower the lr")
