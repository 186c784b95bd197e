"""The perturbation penalty as it was published, done straightforwardly: what ours is measured against.

K perturbations for each image are ascended in one batch of K n images, with the gradients of everything; one more pass over
all K n with a graph finds each class's furthest logit; the loss is taken at the K winners. Written from the description of
Bietti et al., ICML 2019. The one departure: a gradient or perturbation of zero does not divide by zero.
"""

import torch
from torch import Tensor, nn

TINY = 1e-12


def published_perturbation(model: nn.Module, x: Tensor, eps: float, steps: int) -> Tensor:
    """sum_k (f_k(x_i + d) - f_k(x_i))^2 at each class's furthest signed increase. Leaves weight gradients behind."""
    with torch.no_grad():
        classes = model(x[:1]).shape[1]
    count, image = len(x), x.shape[1:]
    own = torch.arange(classes, device=x.device)
    delta = torch.zeros(classes, count, *image, device=x.device, requires_grad=True)
    for _ in range(steps):
        logits = model((x[None] + delta).reshape(-1, *image)).view(classes, count, classes)
        delta.grad = None
        logits[own, :, own].sum().backward()
        with torch.no_grad():
            assert delta.grad is not None
            delta += 1.5 * eps / steps * delta.grad / lengths(delta.grad).clamp_min(TINY)
            delta *= (eps / lengths(delta).clamp_min(TINY)).clamp_max(1)
    logits = model((x[None] + delta).reshape(-1, *image)).view(classes, count, classes)
    best = (logits[own, :, own] - model(x).T).argmax(1)
    clean, moved = x[best], x[best] + delta.detach()[own, best]
    return (model(moved) - model(clean)).diagonal().square().sum()


def lengths(delta: Tensor) -> Tensor:
    """l2 length of each class's and image's perturbation."""
    return delta.flatten(2).norm(dim=2).view(*delta.shape[:2], *[1] * (delta.dim() - 2))
