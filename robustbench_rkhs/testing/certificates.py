"""Conformance checks of a certificate: never above the true radius, 0 for misclassified images, model left unchanged."""

import torch
from torch import nn

from robustbench_rkhs.certificates import Certificate, Certified
from robustbench_rkhs.evaluation.own_method import checked_certified
from robustbench_rkhs.lipschitz import Uncertifiable
from robustbench_rkhs.nodes.threat_model import Norm
from robustbench_rkhs.testing.must import left_as_it_was, must
from robustbench_rkhs.testing.oracles import affine

SHAPES = ((1, 4, 4), (2, 3, 3), (5,))


def check_certificate(certificate: Certificate, norm: Norm = "l2", factor: float = 0.0) -> None:
    """All checks of a certificate in this norm. `factor`: least share of the exact radius that it proves on an affine model."""
    must(norm in certificate.norms, f"it must say that it certifies {norm}: norms = frozenset({{{norm!r}}})")
    if "norm" in type(certificate).model_fields:
        certificate = certificate.model_copy(update={"norm": norm})
    scenes = [(seed, shape, scale) for seed, shape in enumerate(SHAPES) for scale in (1.0, 1e-4, 1e4)]
    proved = [below_the_closed_form(certificate, norm, factor, *scene) for scene in scenes]
    must(any(proved), "it refuses every model here, also affine ones")
    below_a_grid(certificate, norm)
    nothing_for_what_is_wrong(certificate)
    leaves_the_model(certificate)


def asked(certificate: Certificate, model: nn.Module, x: torch.Tensor, y: torch.Tensor, eps: float = 0.1) -> Certified | None:
    """Its checked result on these images; None if it refuses the model (`Uncertifiable`)."""
    try:
        return checked_certified(certificate(model, x, y, torch.arange(len(x)), (eps,)), len(x))
    except Uncertifiable:
        return None


def below_the_closed_form(
    certificate: Certificate, norm: Norm, factor: float, seed: int, shape: tuple[int, ...], scale: float
) -> bool:
    """On an affine model: between `factor` times the exact distance to the boundary and that distance. False if refused."""
    oracle = affine(4, shape, scale=scale, seed=seed, images=16)
    truth = oracle.distance(norm)
    found = asked(certificate, oracle.model, oracle.x, oracle.y, truth.median().item())
    if found is None:
        return False
    radius = found.radius
    worst = (radius / truth).max().item()
    must(worst <= 1 + 1e-9, f"a radius of {worst:.9g} times the exact one of an affine model: the proof or its arithmetic is wrong")
    least = (radius / truth).min().item()
    must(least >= factor, f"expected at least {factor:g} of the exact radius of an affine model, found {least:.4g}")
    return True


def below_a_grid(certificate: Certificate, norm: Norm, seeds: int = 3) -> None:
    """On small networks of two pixels: below the nearest misclassified point of a fine grid."""
    axis = torch.linspace(-2, 2, 161, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    for seed in range(seeds):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Linear(2, 12), nn.ReLU(), nn.Linear(12, 3)).double()
            x = torch.rand(16, 2, dtype=torch.float64)
        y = model(x).argmax(1)
        found = asked(certificate, model, x, y)
        if found is None:
            return
        apart = torch.cdist(x, grid, p=2 if norm == "l2" else torch.inf)
        nearest = torch.where(model(grid).argmax(1)[None] != y[:, None], apart, torch.inf).amin(1)
        must((found.radius < nearest).all(), "a radius reaches a point that the network assigns to another class")


def nothing_for_what_is_wrong(certificate: Certificate) -> None:
    """Radius 0 for an image that is misclassified, tied or not finite."""
    model = nn.Linear(2, 3)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, -1.0]]))
        model.bias.zero_()
    x = torch.tensor([[1.0, 0.5], [0.0, 0.5], [torch.nan, 0.0]])
    found = asked(certificate, model, x, torch.tensor([1, 0, 0]))
    if found is None:
        return
    for place, what in enumerate(("misclassified", "tied", "not finite")):
        must(found.radius[place] == 0, f"an image that is {what} has radius 0, found {found.radius[place]:.4g}")
    must(found.reason[2] == "error", f"an image that is not finite has reason 'error', found {found.reason[2]!r}")


def leaves_the_model(certificate: Certificate) -> None:
    """Weights, buffers, modes and gradients are unchanged."""
    oracle = affine(3, (1, 4, 4), images=4)
    with left_as_it_was(oracle.model, "a certificate"):
        asked(certificate, oracle.model, oracle.x, oracle.y)
