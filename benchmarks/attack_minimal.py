"""Part `minimal` of attacks.py: our minimal-norm attacks beside foolbox's and adv-lib's, each run once for all epsilons.

    python benchmarks/attacks.py --part minimal            # 100 images: 5 minutes on a quiet core
    python benchmarks/attacks.py --part minimal --quick    # 20 images: half a minute

The networks and the images of attacks.py, l2; of the images those that the network gets right are attacked. foolbox's attacks run
as the library has them, straight logits and default settings (L2PGD, which needs a budget, at every eps of the grid, its radius the
least at which it broke an image). adv-lib's run where it imports (`pip install --no-deps --target FOLDER adv-lib`, FOLDER on
PYTHONPATH: its dependency visdom, a plotting server, does not install and is stood in for here); otherwise the figures say so.

success: share of the attacked images that were broken; median and mean radius and excess: over those; excess: the radius over the
least that any attack of this run found for the image, less one. above: by how many images the curve of robust accuracy lies above
that of all attacks together, at the worst eps of the grid. passes: forward plus backward, an image. seconds: of CPU, all images.
unmatched: attacks of others that none of ours equals in success, passes and, on the images that they broke, mean excess (to a
thousandth) at once.
"""

import importlib
import sys
import time
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
from attack_networks import images, network
from attack_peers import GRID
from torch import Tensor, nn

from robustbench_rkhs.attacks import ALMA, DDN, FAB, FMN, Attack, SuperDeepFool
from robustbench_rkhs.attacks.ball import distances
from robustbench_rkhs.attacks.library_model import Counted, confined_randomness, counting
from robustbench_rkhs.layers.frozen import freeze

OURS: dict[str, Attack] = {
    "superdeepfool": SuperDeepFool(),
    "ddn": DDN(),
    "ddn 20 steps": DDN(steps=20),
    "fmn": FMN(),
    "alma": ALMA(),
    "alma 50 steps": ALMA(steps=50),
    "fab": FAB(),
    "fab 3 targets": FAB(targets=3),
}
"""Ours, by the name in the table."""
Library = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(model, images, labels) -> the nearest adversarial images that a library's attack finds."""


def foolbox_attacks(quick: bool) -> dict[str, Library]:
    """foolbox's, by name; Carlini and Wagner's with nine searches of 1,000 steps, a tenth of its default."""
    import foolbox  # here, not above: it takes a second

    attacks = {
        "foolbox ddn": foolbox.attacks.DDNAttack(),
        "foolbox ddn 300": foolbox.attacks.DDNAttack(steps=300),
        "foolbox fmn": foolbox.attacks.L2FMNAttack(),
        "foolbox deepfool": foolbox.attacks.L2DeepFoolAttack(),
        "foolbox cw": foolbox.attacks.L2CarliniWagnerAttack(steps=20 if quick else 1000),
    }

    def minimal(attack: Any) -> Library:
        return lambda model, x, y: attack.run(foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device), x, _goal(y))

    def _goal(y: Tensor) -> Any:
        return foolbox.criteria.Misclassification(y)

    def pgd(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        net, found = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device), x.clone()
        _, clipped, fell = foolbox.attacks.L2PGD()(net, x, _goal(y), epsilons=list(GRID[::-1]))
        for candidates, broken in zip(clipped, fell, strict=True):  # the least eps last
            found[broken] = candidates[broken]
        return found

    return {name: minimal(attack) for name, attack in attacks.items()} | {"foolbox pgd x10 eps": pgd}


def advlib_attacks() -> dict[str, Library]:
    """adv-lib's by name; none where it does not import."""
    standin = types.ModuleType("visdom")
    standin.Visdom = object  # type: ignore[attr-defined]
    held = sys.modules.setdefault("visdom", standin)
    try:
        attacks: Any = importlib.import_module("adv_lib.attacks")
    except ImportError:
        return {}
    finally:
        if held is standin:
            del sys.modules["visdom"]
    return {
        "adv-lib ddn": lambda model, x, y: attacks.ddn(model, x, y, levels=None),
        "adv-lib ddn 300": lambda model, x, y: attacks.ddn(model, x, y, levels=None, steps=300),
        "adv-lib fmn 100": lambda model, x, y: attacks.fmn(model, x, y, norm=2, steps=100),
        "adv-lib sdf": attacks.sdf,
        "adv-lib fab": lambda model, x, y: attacks.fab(model, x, y, norm=2),
        "adv-lib alma 100": lambda model, x, y: attacks.alma(model, x, y, num_steps=100),
        "adv-lib alma 1000": attacks.alma,
    }


@torch.no_grad()
def radii(model: nn.Module, x: Tensor, y: Tensor, found: Tensor) -> Tensor:
    """Distances of those that are adversarial and in the box; infinity for the others."""
    fell = (model(found).argmax(1) != y) & (found.flatten(1).amin(1) >= 0) & (found.flatten(1).amax(1) <= 1)
    return torch.where(fell, distances(x, found, "l2"), torch.inf)


def ours(attack: Attack, model: nn.Module, x: Tensor, y: Tensor, keys: Tensor) -> tuple[Tensor, int, float]:
    """Radii, passes and CPU seconds of one of ours."""
    aimed = attack.aimed(norm="l2", eps=None, seed=0)
    started = time.process_time()
    found = aimed(model, x, y, keys)
    seconds = time.process_time() - started
    return radii(model, x, y, found.images), int((found.forwards + found.backwards).sum()), seconds


def theirs(attack: Library, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, int, float]:
    """The same of a library's, counted from outside."""
    with counting(model, x) as counted, confined_randomness(0), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        started = time.process_time()
        found = attack(counted, x.clone(), y).detach().to(x)
        seconds = time.process_time() - started
    return radii(model, x, y, found), counted.forwards + counted.backwards, seconds


def row(away: Tensor, least: Tensor, passes: int, seconds: float) -> dict[str, Any]:
    """What the table says of one attack."""
    broken = away < torch.inf
    near, excess = away[broken], (away / least - 1)[broken]
    above = [int((away > eps).sum() - (least > eps).sum()) for eps in GRID]
    return {
        "success": round(broken.double().mean().item(), 4),
        "median": round(near.median().item(), 4) if len(near) else None,
        "mean": round(near.mean().item(), 4) if len(near) else None,
        "excess": round(excess.mean().item(), 4) if len(near) else None,
        "within_1_percent": round((away <= 1.01 * least).double().mean().item(), 3),
        "above": max(above),
        "stands": [int((away > eps).sum()) for eps in GRID],
        "passes": round(passes / len(away)),
        "seconds": round(seconds, 2),
    }


def unmatched(done: dict[str, tuple[Tensor, int, float]], least: Tensor) -> list[str]:
    """Whom none of ours equals: as many images, no farther on those that they broke, for no more passes."""

    def equals(mine: str, peer: str) -> bool:
        (near, passes, _), (other, spent, _) = done[mine], done[peer]
        broken = other < torch.inf
        farther = ((near - other) / least)[broken].mean() if broken.any() else torch.zeros(())
        return bool((near < torch.inf).sum() >= broken.sum() and farther <= 0.001 and passes <= spent)

    return [peer for peer in done if peer not in OURS and not any(equals(mine, peer) for mine in OURS)]


def measure(quick: bool) -> dict[str, Any]:
    """The table of each network."""
    test, advlib = images(20 if quick else 100), advlib_attacks()
    peers = foolbox_attacks(quick) | advlib
    tables: dict[str, Any] = {}
    for name in ("adv", "std", "lip"):
        model = freeze(network(name))
        with torch.no_grad():
            right = model(test.x).argmax(1) == test.y
        x, y, keys = test.x[right], test.y[right], test.index[right]
        Counted(model, x.shape[1:], x.dtype)(x.clone().requires_grad_()).sum().backward()  # warm
        model.zero_grad()
        done: dict[str, tuple[Tensor, int, float]] = {}
        for one, attack in (OURS | peers).items():
            done[one] = ours(attack, model, x, y, keys) if isinstance(attack, Attack) else theirs(attack, model, x, y)
            print(f"{name} {one}: {done[one][2]:.1f} s", file=sys.stderr, flush=True)
        least = torch.stack([away for away, *_ in done.values()]).amin(0)
        rows = {one: row(away, least, passes, seconds) for one, (away, passes, seconds) in done.items()}
        tables[name] = {
            "attacked": len(x),
            "stands": [int((least > eps).sum()) for eps in GRID],
            "unmatched": unmatched(done, least),
            "rows": rows,
        }
    return {
        "minimal_unmatched": {name: table["unmatched"] for name, table in tables.items()},
        "minimal_images": len(test),
        "minimal_eps": list(GRID),
        "minimal_adv_lib": _version() if advlib else "adv-lib: not importable here",
        "minimal": tables,
    }


def _version() -> str:
    from importlib.metadata import version

    return version("adv-lib")
