"""Tightness: each layer's proven bound over a lower bound of the truth, and the same for the whole network."""

import math
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from robustbench_rkhs import verdicts
from robustbench_rkhs.audit.factors import Linearised, Part, doubled, parts, power
from robustbench_rkhs.bounds import eclipse_pairs, liplt_pairs, pairs, steps
from robustbench_rkhs.data import Split
from robustbench_rkhs.identity import key_of
from robustbench_rkhs.lipschitz import Uncertifiable, affine
from robustbench_rkhs.lipschitz.bounds import product
from robustbench_rkhs.rkhs_norm import Unsound
from robustbench_rkhs.rkhs_norm.lower import gradient_bounds, quotient_bounds
from robustbench_rkhs.runtime.counter_rng import draws
from robustbench_rkhs.runtime.digests import weights_digest
from robustbench_rkhs.runtime.events import PhaseStarted, emit
from robustbench_rkhs.runtime.steps import stepped

PairBounds = Callable[[nn.Module, tuple[int, ...], int], Tensor]
KRYLOV = 60
"""Largest dimension of the Krylov space for an affine layer's norm."""
ITERATIONS = 30
"""Power iterations on the Jacobian of a layer that is not affine, at each image."""
EXACT = 1e-7
"""A layer whose ratio is within this of 1 loses nothing: rounding up alone costs 1e-9."""
NOTHING = 1e-3
"""A layer that loses less, as the logarithm of its ratio, loses nothing worth telling."""
SLACK = 1e-9
"""Relative tolerance for float64 rounding when a lower bound is compared with a proven one."""


def layer_product(model: nn.Module, shape: tuple[int, ...], classes: int) -> Tensor:
    """sqrt(2) times the product of the layers' proven bounds, for every pair."""
    whole = product([step.bound.value for step in steps(model, shape)])
    return math.sqrt(2) * (1 + 1e-15) * whole * (1 - torch.eye(classes, dtype=torch.float64))


def of_chain(bounds: Callable[..., Any]) -> PairBounds:
    """The bounds of a certificate on the float64 chain."""
    return lambda model, shape, classes: bounds(steps(model, shape), shape, classes)


BOUNDS: list[tuple[str, PairBounds]] = [
    ("product of layers, sqrt(2)", layer_product),
    ("pairs (certificate 'margin')", pairs),
    ("pairs (certificate 'liplt')", of_chain(liplt_pairs)),
    ("pairs (certificate 'eclipse')", of_chain(eclipse_pairs)),
]
"""Proven bounds of f_y - f_j by name."""


def tightness(
    name: str,
    model: nn.Module,
    test: Split,
    *,
    samples: int | None = 32,
    seed: int = 0,
    folder: str | Path | None = None,
    command: str = "",
) -> dict[str, Any]:
    r"""The tightness report as one JSON value, which report.tightness writes and draws.

    .. math:: \text{ratio}_k = U_k / l_k \ge 1, \qquad \text{share}_k = \log(U_k / l_k) / \sum_i \log(U_i / l_i)

    U_k: proven. l_k, empirical: the norm of an affine layer found in a Krylov space of its operator; of any other layer the
    largest Jacobian norm at the images by power iteration. Of the network, the largest gradient norm of f_y - f_j at the images
    and the steepest pair of points found by ascent. All in float64; `l` may lie below the truth, never above it.
    `folder`: verdicts of this model there give certified radius over broken distance. Raises Uncertifiable where no layer is
    proved; Unsound where what was found lies above what is proved.
    """
    split = test.sample(min(samples or len(test), len(test)), seed)
    twin, x, shape = doubled(model), split.x.to("cpu", torch.float64), split.shape
    chain, refused = parts(model, shape)
    if not any(part.proven is not None for part in chain):
        raise Uncertifiable(refused or "no layer with a proven bound")
    layers = []
    with stepped("layers", "", len(chain), "layers") as step:
        for part, at in zip(chain, _inputs(chain, twin, x, refused), strict=True):
            layers.append(_layer(part, at, seed))
            step.add()
            step.tell()
    emit(PhaseStarted(phase="lower bounds of the whole network"))
    total = math.fsum(row["lost"] for row in layers if row["lost"])
    for row in layers:
        row["share"] = None if row["lost"] is None else row["lost"] / total if total > 0 else 0.0
    gradient, starts = gradient_bounds(twin, x, 4, 45)
    lower = gradient.largest(quotient_bounds(twin, starts))
    emit(PhaseStarted(phase="proven bounds of the whole network"))
    network = [_network(label, function, model, shape, lower.pairs) for label, function in BOUNDS]
    for row in [*layers, *network]:
        if row["ratio"] is not None and row["ratio"] < 1 - SLACK:
            raise Unsound(f"{row.get('layer') or row['bound']}: {row['lower']:.6g} was found, {row['upper']:.6g} is proved")
    wasters = [row for row in layers if row["share"] and row["lost"] > NOTHING]
    return {
        "about": {
            "model": name,
            "weights": weights_digest(model.state_dict()),
            "key": key_of(model),
            "data": test.data,
            "data_digest": test.digest,
            "samples": len(split),
            "seed": seed,
            "command": command,
            "date": date.today().isoformat(),
            "torch": torch.__version__,
            "arithmetic": "float64 on CPU",
        },
        "layers": layers,
        "waster": max(wasters, key=lambda row: row["share"])["layer"] if wasters else None,
        "lost": total,
        "between": _between(layers, lower.logits, total),
        "network": network,
        "images": _images(model, folder, name),
        "refused": refused,
    }


def _between(layers: list[dict[str, Any]], steepest: float, total: float) -> float | None:
    """The loss of the product beyond its factors: no image and direction is the worst for every layer at once."""
    bounds = [row["upper"] for row in layers]
    whole = math.prod(bound for bound in bounds if bound is not None)
    return math.log(whole / steepest) - total if None not in bounds and whole > 0 and steepest > 0 else None


def _inputs(chain: list[Part], twin: nn.Module, x: Tensor, refused: str) -> Iterator[Tensor]:
    """The input of each layer for the images: through the proved chain, else recorded in the forward pass."""
    with torch.no_grad():
        if not refused:
            for part in chain:
                yield x
                x = part.module(x.clone())
            return
        seen: dict[str, list[Tensor]] = {}
        modules = dict(twin.named_modules())

        def watch(path: str) -> Callable[..., None]:
            return lambda module, inputs: seen.setdefault(path, []).append(inputs[0].detach().clone())

        hooks = [modules[path].register_forward_pre_hook(watch(path)) for path in {part.path for part in chain}]
        twin(x)
        for hook in hooks:
            hook.remove()
        for part in chain:
            yield seen[part.path].pop(0)


def _layer(part: Part, x: Tensor, seed: int) -> dict[str, Any]:
    """One layer's row; a layer without a proof, or with a zero empirical value, has no ratio."""
    if affine(part.module):
        how, lower = "operator", krylov(part.module, part.inputs, seed)
    else:
        how = "Jacobian at the images"
        keys = torch.arange(len(x))
        lower = max(
            float(power(Linearised(part.module, some), draws(key, seed, some), ITERATIONS).max())
            for some, key in zip(x.split(64), keys.split(64), strict=True)
        )
    known = part.proven is not None and lower > 0
    ratio = part.proven / lower if known and part.proven is not None else None
    return {
        "layer": f"{part.path or 'model'} ({type(part.module).__name__})",
        "upper": part.proven,
        "lower": lower,
        "empirical": how,
        "ratio": ratio,
        "lost": None if ratio is None else math.log(ratio) if ratio > 1 + EXACT else 0.0,
    }


def krylov(module: nn.Module, shape: tuple[int, ...], seed: int = 0, dimension: int = KRYLOV) -> float:
    r"""||A v|| / ||v|| for the steepest v in span{s, A^T A s, ..., (A^T A)^{m-1} s}: a lower bound for any start s.

    A: the affine module without its constant. Golub-Kahan with full reorthogonalisation; never less than power iteration gives.
    Cost: two products with A and its adjoint per dimension.
    """
    zeros = torch.zeros(1, *shape, dtype=torch.float64)
    operator = Linearised(module, zeros)
    basis: list[Float64[Tensor, " inputs"]] = []
    images: list[Float64[Tensor, " outputs"]] = []
    v = draws(torch.zeros(1, dtype=torch.int64), seed, zeros).flatten()
    first = 1.0
    for _ in range(min(dimension, v.numel())):
        for _ in range(2):  # twice is enough for orthogonality to rounding
            for other in basis:
                v = v - (other @ v) * other
        length = float(v.norm())
        if length <= 1e-12 * first:
            break  # the space is complete
        basis.append(v / length)
        image = operator.forward(basis[-1].view_as(zeros))
        images.append(image.flatten())
        v = operator.adjoint(image).flatten()
        first = max(float(v.norm()), 1e-300)
    if not images:
        return 0.0
    coefficients = torch.linalg.svd(torch.stack(images, 1), full_matrices=False).Vh[0]
    best = torch.stack(basis, 1) @ coefficients
    return float(operator.forward(best.view_as(zeros)).norm() / best.norm())


def _network(label: str, function: PairBounds, model: nn.Module, shape: tuple[int, ...], lower: Tensor) -> dict[str, Any]:
    """One proven bound of the network: the largest pair, and the median ratio over pairs."""
    found = float(lower.max())
    row: dict[str, Any] = {"bound": label, "upper": None, "lower": found, "ratio": None, "median_ratio": None, "refused": ""}
    try:
        upper = function(doubled(model), shape, len(lower))
    except Uncertifiable as refused:
        return row | {"refused": str(refused)}
    apart = (lower > 0) & ~torch.eye(len(lower), dtype=torch.bool)
    ratios = (upper / lower.clamp_min(1e-300))[apart]
    if len(ratios) and float(ratios.min()) < 1 - SLACK:
        raise Unsound(f"{label}: a difference of logits was found steeper than what is proved")
    return row | {
        "upper": float(upper.max()),
        "ratio": float(upper.max()) / found if found > 0 else None,
        "median_ratio": float(ratios.median()) if len(ratios) else None,
    }


def _images(model: nn.Module, folder: str | Path | None, name: str) -> dict[str, Any] | None:
    """Certified radius over the distance of the nearest adversarial image, for images with both; None without verdicts."""
    if folder is None or not Path(folder, name).is_dir():
        return None
    key, ratios = key_of(model), dict[int, float]()
    for done in verdicts.read_all(Path(folder, name)):
        if done.about.key == key and done.about.norm == "l2":
            rows = verdicts.images(done)
            rows = rows[(rows["certified"] > 0) & np.isfinite(rows["broken"]) & (rows["broken"] > 0)]
            for index, ratio in zip(rows["index"].tolist(), (rows["certified"] / rows["broken"]).tolist(), strict=True):
                ratios[index] = max(ratio, ratios.get(index, 0.0))
    return {"images": len(ratios), "median": float(np.median(list(ratios.values())))} if ratios else None
