"""Attacks against exact radii: affine models, nearest prototypes and small ReLU networks, every one enumerated.

    python benchmarks/known_radii.py            # a minute on one core
    python benchmarks/known_radii.py --quick    # 4 images of each network

A network is cut into the regions where it is affine; in each, and for each other class, the nearest point of the box is a quadratic
program (l2: least distance programming by NNLS, Lawson & Hanson 1974) or a linear one (linf), both solved exactly. Reported:
distance over exact distance, in the median and at the 95th percentile, by minimal-norm attack alone (an image that it does not
break counts as infinite); by fixed-budget attack the share broken at 1.01 and at 1.1 times the exact radius; and the worst image
of the whole standard protocol, whose ensemble gets 1.01 times the exact radius. Writes reports/benchmarks/known_radii.json.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import torch
from common import ROOT, arguments, finish
from scipy.optimize import linprog, nnls
from torch import Tensor, nn

from robustbench_rkhs.attacks import ALMA, APGD, DDN, FAB, FMN, PGD, Ensemble, SuperDeepFool
from robustbench_rkhs.attacks.ball import distances
from robustbench_rkhs.attacks.efforts import protocol_of

Cut = tuple[np.ndarray, np.ndarray]
"""A and b of a polytope {z: A z >= b}, outside of which another piece of the network lies."""


class Prototypes(nn.Module):
    """Each class scores minus the squared distance to its nearest prototype."""

    def __init__(self, points: Tensor) -> None:
        super().__init__()
        self.points = nn.Parameter(points)  # (classes, prototypes, pixels)

    def forward(self, x: Tensor) -> Tensor:
        return -(x.flatten(1)[:, None, None] - self.points).square().sum(3).amin(2)


def prototype_cuts(model: Prototypes, label: int) -> Iterator[Cut]:
    """For each prototype q of another class: nearer to q than to every prototype of the label."""
    points = model.points.detach().double().numpy()
    for kind, several in enumerate(points):
        for q in several if kind != label else []:
            own = points[label]
            yield 2 * (q - own), (q**2).sum() - (own**2).sum(1)


def relu_cuts(model: Any, label: int) -> Iterator[Cut]:
    """For each pattern of active units and each other class: in that region, the class scores at least as high as the label."""
    first, last = model[1], model[3]
    w, b = first.weight.detach().double().numpy(), first.bias.detach().double().numpy()
    v, c = last.weight.detach().double().numpy(), last.bias.detach().double().numpy()
    for pattern in product((0.0, 1.0), repeat=len(w)):
        on, sign = np.array(pattern), 2 * np.array(pattern) - 1
        for other in set(range(len(v))) - {label}:
            row = (v[other] - v[label]) * on
            yield np.vstack([sign[:, None] * w, row @ w]), np.append(-sign * b, c[label] - c[other] - row @ b)


def affine_cuts(model: Any, label: int) -> Iterator[Cut]:
    w, b = model[1].weight.detach().double().numpy(), model[1].bias.detach().double().numpy()
    for other in set(range(len(w))) - {label}:
        yield (w[other] - w[label])[None], np.array([b[label] - b[other]])


def nearest(x: np.ndarray, cut: Cut, norm: str, best: float) -> float:
    """The distance from x to a polytope inside the box; infinite where it is empty, or surely not below `best`."""
    size, (a, b) = len(x), cut
    rise = b - a @ x
    length = np.linalg.norm(a, 2 if norm == "l2" else 1, axis=1)
    if np.isfinite(best) and (rise > best * length + 1e-12).any():
        return np.inf  # one of its planes alone is farther
    a = np.vstack([a, np.eye(size), -np.eye(size)])
    rise = np.concatenate([rise, -x, x - 1])
    if norm == "linf":
        slack = np.hstack([-a, np.zeros((len(a), 1))])
        eye, one = np.eye(size), -np.ones((size, 1))
        rows, ends = np.vstack([slack, np.hstack([eye, one]), np.hstack([-eye, one])]), np.concatenate([-rise, np.zeros(2 * size)])
        done = linprog(np.append(np.zeros(size), 1.0), A_ub=rows, b_ub=ends, bounds=[(None, None)] * size + [(0, None)])
        return float(done.fun) if done.status == 0 else np.inf
    stacked, wanted = np.vstack([a.T, rise[None]]), np.append(np.zeros(size), 1.0)
    found, rest = nnls(stacked, wanted, maxiter=50 * len(a))
    left = stacked @ found - wanted
    return np.inf if rest < 1e-9 else float(np.linalg.norm(left[:size] / left[size]))


def exact(model: Any, cuts: Any, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """The exact distance of each image to the nearest point of another class in the box."""
    radii = []
    for image, label in zip(x.flatten(1).double().numpy(), y.tolist(), strict=True):
        best = np.inf
        for cut in cuts(model, label):
            best = min(best, nearest(image, cut, norm, best))
        radii.append(best)
    return torch.tensor(radii, dtype=torch.float64)


def networks(images: int) -> Iterator[tuple[str, nn.Module, Any, Tensor]]:
    """Name, network, its cuts and images."""
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int, generator: torch.Generator = generator) -> Tensor:
            return torch.randn(*shape, generator=generator)

        x = torch.rand(images, 1, 4, 4, generator=generator)
        affine = nn.Sequential(nn.Flatten(), nn.Linear(16, 6))
        affine[1].weight.data = normal(6, 16) * normal(6, 1).exp()
        affine[1].bias.data = -affine[1].weight.data @ torch.full((16,), 0.5)
        yield f"affine {seed}", affine, affine_cuts, x
        yield f"prototypes {seed}", Prototypes(torch.rand(4, 3, 16, generator=generator)), prototype_cuts, x
        relu = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        relu[1].weight.data, relu[3].weight.data = 2 * normal(8, 6), normal(3, 8)
        relu[1].bias.data = -relu[1].weight.data @ torch.full((6,), 0.5) + 0.5 * normal(8)
        relu[3].bias.data = 0.1 * normal(3)
        yield f"relu {seed}", relu, relu_cuts, torch.rand(images, 1, 2, 3, generator=generator)


MINIMAL = {
    "superdeepfool": SuperDeepFool(),
    "ddn": DDN(),
    "fmn": FMN(),
    "alma": ALMA(),
    "fab": FAB(),
    "fab:targeted": FAB(targets=3),
}
FIXED = {"pgd": PGD(), "apgd:margin": APGD(loss="margin"), "apgd": APGD(), "apgd:targeted": APGD(loss="targeted")}


def measured(attack: Any, model: nn.Module, x: Tensor, y: Tensor, norm: Any, eps: Tensor | None = None) -> Tensor:
    """The distance of each adversarial image; infinite where none was found."""
    found = attack.aimed(norm=norm, eps=None, seed=0)(model, x, y, torch.arange(len(x)), eps).images
    with torch.no_grad():
        return torch.where(model(found).argmax(1) != y, distances(x, found, norm), torch.inf)


def main() -> None:
    given = arguments(__doc__ or "", threads=1)
    ratios: dict[str, list[Tensor]] = {}
    broken: dict[str, list[Tensor]] = {}
    for name, model, cuts, x in networks(4 if given.quick else 16):
        model.eval()
        with torch.no_grad():
            y = model(x).argmax(1)
        for norm in ("l2", "linf"):
            truth = exact(model, cuts, x, y, norm)
            ours = truth.isfinite() & (truth > 1e-3)
            x_, y_, truth = x[ours], y[ours], truth[ours]
            best = torch.full_like(truth, torch.inf)
            for label, attack in MINIMAL.items():
                if (label, norm) == ("ddn", "linf"):
                    continue
                ratio = measured(attack, model, x_, y_, norm) / truth
                assert (ratio > 1 - 1e-4).all(), f"{name} {norm} {label}: nearer than exact, {ratio.min()}"
                ratios.setdefault(f"{norm} {label}", []).append(ratio)
            for attack in protocol_of("standard", norm)[:-1]:
                best = torch.minimum(best, measured(attack, model, x_, y_, norm) / truth)
            for label, attack in FIXED.items():
                for factor in (1.01, 1.1):
                    fell = measured(attack, model, x_, y_, norm, factor * truth).isfinite()
                    broken.setdefault(f"{norm} {label} at {factor}", []).append(fell)
            ensemble = measured(Ensemble(), model, x_, y_, norm, 1.01 * truth) / truth
            ratios.setdefault(f"{norm} protocol", []).append(torch.minimum(best, ensemble))
            print(name, norm, len(truth), f"protocol at most {ratios[f'{norm} protocol'][-1].max():.4f}", flush=True)
    rows: dict[str, Any] = {}
    for label, several in ratios.items():
        every = torch.cat(several)
        whole = torch.where(every.isfinite(), every, 1e9).quantile(torch.tensor([0.5, 0.95, 1.0], dtype=every.dtype)).tolist()
        rows[label] = {"median": round(whole[0], 5), "95%": round(whole[1], 4), "max": round(whole[2], 4), "images": len(every)}
        rows[label]["failures"] = int(every.isinf().sum())
        print(label, rows[label])
    shares = {label: round(float(torch.cat(several).double().mean()), 4) for label, several in broken.items()}
    print(shares)
    figures = {"rows": rows, "broken": shares, "seed": 0}
    attacks = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "robustbench_rkhs" / "attacks").rglob("*.py"))
    finish("known_radii", figures, given, ["benchmarks/known_radii.py", *attacks])


if __name__ == "__main__":
    main()
