"""Building blocks of the conformance checks: an assertion with a message, and a guard that a model is left unchanged."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def must(holds: bool | Tensor, sentence: str) -> None:
    """Raises AssertionError with the sentence if the condition is false."""
    if not bool(holds):
        raise AssertionError(sentence)


@contextmanager
def left_as_it_was(model: nn.Module, what: str) -> Iterator[None]:
    """Asserts that the block leaves weights, buffers, modes, `requires_grad` and gradients unchanged."""
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    modes, wanted = [part.training for part in model.modules()], [one.requires_grad for one in model.parameters()]
    held = [one.grad for one in model.parameters()]
    values = [None if one is None else one.clone() for one in held]
    yield
    for name, tensor in model.state_dict().items():
        must(torch.equal(tensor, state[name]), f"{what} must leave the model's {name!r} as it was")
    must([part.training for part in model.modules()] == modes, f"{what} must leave every submodule's mode as it was")
    must([one.requires_grad for one in model.parameters()] == wanted, f"{what} must leave every requires_grad as it was")
    for parameter, grad, value in zip(model.parameters(), held, values, strict=True):
        must(parameter.grad is grad, f"{what} must leave every gradient as it was")
        must(value is None or (grad is not None and torch.equal(grad, value)), f"{what} must leave every gradient as it was")
