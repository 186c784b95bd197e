"""Our attacks against AutoAttack: the same verdicts, for how many passes and CPU seconds.

    python benchmarks/attacks.py                    # every part but vgg: an hour on one core, most of it AutoAttack's
    python benchmarks/attacks.py --quick            # a sample of each
    python benchmarks/attacks.py --part curve       # one part; the file keeps the others' figures

curve: ten epsilons on an adversarially trained and a plain digits network: minimal-norm bounds, then each image at its largest open
eps, the whole ensemble on every survivor, against pyautoattack at every eps (attack_peers.py; its runs are kept).
adaptive: the same with effort adaptive; and on networks built to mask gradients, against the full ensemble.
lipschitz: a 1-Lipschitz network: certificates, then the ensemble on what they leave open; with the audit of the certified too.
single: one eps, no certificate, alternating runs: CPU seconds, at middling and at no robust accuracy.
quick: minimal-norm bounds alone.
vgg: seconds of each part on VGG-11 and 64 images of CIFAR-10, extrapolated from short runs; only when asked for.
"""

import json
import statistics
import time
from collections.abc import Callable
from datetime import date
from typing import Any

import attack_peers
import torch
from attack_networks import RECIPES, images, masked, network
from attack_peers import GRID, autoattack
from common import ROOT, arguments, finish, machine
from torch import Tensor, nn

from robustbench_rkhs.attacks import FAB, Ensemble, FoolboxAttack
from robustbench_rkhs.attacks.ball import distances
from robustbench_rkhs.attacks.contract import Attacked
from robustbench_rkhs.certificates import MarginCertificate
from robustbench_rkhs.layers.settling import settled

PARTS = ("curve", "adaptive", "lipschitz", "single", "quick")
BOUNDS: tuple[FAB, ...] = (FAB(steps=10),)
"""What brings every image's distance near to the truth first, at a hundredth of the ensemble's cost."""
SOURCES = [
    *(f"benchmarks/{name}.py" for name in ("attacks", "attack_networks", "attack_peers")),
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "robustbench_rkhs" / "attacks").glob("*.py")),
]


class Curve:
    """Who stands at each eps of a grid, and what it took."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, keys: Tensor) -> None:
        self.given, self.passes, self.rounds = (model, x, y, keys), len(x), 0
        with torch.no_grad():
            self.right = model(x).argmax(1) == y
        self.broken = torch.full((len(x),), torch.inf, dtype=torch.float64)
        self.survived = torch.zeros(len(x), dtype=torch.float64)

    def take(self, chosen: Tensor, attacked: Attacked) -> None:
        _, x, _, _ = self.given
        away = distances(x[chosen], attacked.images, "l2")
        self.passes += int(attacked.forwards.sum() + attacked.backwards.sum())
        self.broken[chosen] = torch.minimum(self.broken[chosen], torch.where(away > 0, away, torch.inf))

    def bound(self) -> "Curve":
        """Minimal-norm attacks on every image."""
        model, x, y, keys = self.given
        chosen = self.right.nonzero().flatten()
        for attack in BOUNDS:
            self.take(chosen, attack(model, x[chosen], y[chosen], keys[chosen]))
        return self

    def settle(self, attack: Ensemble, grid: Tensor) -> "Curve":
        """Each image at its largest open eps, until none is open; what survives at an eps is taken to survive below."""
        model, x, y, keys = self.given
        while True:
            open_ = (grid[None] < self.broken[:, None]) & (grid[None] > self.survived[:, None]) & self.right[:, None]
            chosen = open_.any(1).nonzero().flatten()
            if not len(chosen):
                return self
            eps = torch.where(open_[chosen], grid[None], 0).amax(1)
            self.take(chosen, attack(model, x[chosen], y[chosen], keys[chosen], eps))
            stands = self.broken[chosen] > eps
            self.survived[chosen[stands]] = eps[stands]
            self.rounds += 1

    def standing(self, eps: float) -> int:
        return int((self.right & (self.broken > eps)).sum())


def ours(name: str, effort: str, count: int) -> dict[str, Any]:
    """The whole curve of one network."""
    model, test = network(name), images(count)
    started = time.process_time()
    done = Curve(model, test.x, test.y, test.index).bound()
    bounds = {"passes": done.passes, "stands": [done.standing(eps) for eps in GRID]}
    done.settle(Ensemble(effort=effort), torch.tensor(GRID, dtype=torch.float64))
    return {
        "stands": [done.standing(eps) for eps in GRID],
        "passes": done.passes,
        "seconds": round(time.process_time() - started, 1),
        "rounds": done.rounds,
        "bounds": bounds,
    }


def peer(name: str, count: int) -> dict[str, Any]:
    """pyautoattack at every eps: what is kept, or run now."""
    model, test = network(name), images(count)
    held = {run["eps"]: run for run in attack_peers.kept(name, test.digest, count)}
    runs = [held.get(eps) or autoattack(model, test.x, test.y, eps) for eps in GRID]
    return {
        "stands": [run["stands"].count("1") for run in runs],
        "passes": sum(run["forwards"] + run["backwards"] for run in runs),
        "seconds": round(sum(run["seconds"] for run in runs), 1),
    }


def above(one: list[int], other: list[int], count: int) -> float:
    """By how many images in 300 the first curve lies above the second, at the worst eps."""
    return round(max(a - b for a, b in zip(one, other, strict=True)) * 300 / count, 2)


def curve(quick: bool, effort: str = "full") -> dict[str, Any]:
    count, prefix = (20 if quick else 100), ("curve" if effort == "full" else effort)
    rows = {name: {"ours": ours(name, effort, count), "autoattack": peer(name, count)} for name in ("adv", "std")}
    ratio = {
        what: round(sum(row["autoattack"][what] for row in rows.values()) / sum(row["ours"][what] for row in rows.values()), 2)
        for what in ("passes", "seconds")
    }
    worst = max(above(row["ours"]["stands"], row["autoattack"]["stands"], count) for row in rows.values())
    figures = {f"{prefix}_pass_ratio": ratio["passes"], f"{prefix}_time_ratio": ratio["seconds"], f"{prefix}_images_above": worst}
    return figures | {f"{prefix}_networks": rows, f"{prefix}_images": count}


def adaptive(quick: bool) -> dict[str, Any]:
    """The curve, and one eps on masked networks: there the full ensemble is the measure."""
    figures, count = curve(quick, "adaptive"), 12 if quick else 40
    test, rows = images(count), {}
    for name, model in masked(network("std")).items():
        full = Ensemble(eps=0.3)(model, test.x, test.y, test.index)
        spared, spending = Ensemble(eps=0.3, effort="adaptive").explained(model, test.x, test.y, test.index)
        rows[name] = {
            "full": _stands(model, full, test.y),
            "adaptive": _stands(model, spared, test.y),
            "pass_ratio": round(_passes(full) / _passes(spared), 2),
            "signs": list(spending.signs),
        }
    worst = max(300 / count * (row["adaptive"] - row["full"]) for row in rows.values())
    figures["adaptive_images_above"] = max(figures["adaptive_images_above"], round(worst, 2))
    return figures | {"masked": rows, "masked_images": count}


def lipschitz(quick: bool) -> dict[str, Any]:
    count = 30 if quick else 100
    model, test = settled(network("lip")), images(count)
    radius, figures = MarginCertificate()(network("lip"), test.x, test.y, test.index).radius, {}
    for eps, key in ((0.25, "025"), (0.5, "05")):
        library = autoattack(model, test.x, test.y, eps)
        theirs = library["forwards"] + library["backwards"]
        open_ = (radius < eps).nonzero().flatten()
        found = Ensemble(eps=eps)(model, test.x[open_], test.y[open_], test.index[open_])
        passes = count + _passes(found)  # one pass an image is the certificate's
        certified = (radius >= eps).nonzero().flatten()
        audit = FoolboxAttack(attack="deepfool").aimed(norm="l2", eps=None, seed=0)
        audited = _passes(audit(model, test.x[certified], test.y[certified], test.index[certified]))
        figures |= {
            f"lipschitz_pass_ratio_{key}": round(theirs / passes, 2),
            f"lipschitz_pass_ratio_{key}_audited": round(theirs / (passes + audited), 2),
            f"lipschitz_{key}": {
                "certified": len(certified),
                "ours": len(certified) + _stands(model, found, test.y[open_]),
                "autoattack": library["stands"].count("1"),
                "passes": passes,
                "audit": audited,
                "autoattack_passes": theirs,
            },
        }
    return figures | {"lipschitz_images": count}


def single(quick: bool) -> dict[str, Any]:
    """Alternating runs at one eps: medians of CPU seconds."""
    figures: dict[str, Any] = {}
    for key, name, eps, count in (("single_eps", "adv", 0.65, 60), ("weak_model", "std", 1.0, 200)):
        model, test = network(name), images(8 if quick else count)
        seconds: dict[str, list[float]] = {"ours": [], "autoattack": []}
        for _ in range(1 if quick else 3):
            started = time.process_time()
            found = Ensemble(eps=eps)(model, test.x, test.y, test.index)
            seconds["ours"].append(time.process_time() - started)
            library = autoattack(model, test.x, test.y, eps)
            seconds["autoattack"].append(library["seconds"])
        medians = {who: statistics.median(times) for who, times in seconds.items()}
        figures[f"{key}_time_ratio"] = round(medians["autoattack"] / max(medians["ours"], 1e-9), 2)
        figures[key] = {
            "network": name,
            "eps": eps,
            "images": len(test),
            "seconds": {who: round(value, 2) for who, value in medians.items()},
            "passes": {"ours": _passes(found), "autoattack": library["forwards"] + library["backwards"]},
            "stands": {"ours": _stands(model, found, test.y), "autoattack": library["stands"].count("1")},
        }
    return figures


def quick(quick: bool) -> dict[str, Any]:
    """Minimal-norm bounds alone, on 60 images, against AutoAttack at every eps."""
    figures, count, full = {}, 20 if quick else 60, 20 if quick else 100
    for name in ("adv", "std"):
        model, test = network(name), images(full)
        held = {run["eps"]: run for run in attack_peers.kept(name, test.digest, full)}
        runs = [held.get(eps) or autoattack(model, test.x, test.y, eps) for eps in GRID]
        done = Curve(model, test.x[:count], test.y[:count], test.index[:count]).bound()
        stands = [run["stands"][:count].count("1") for run in runs]
        share = sum(run["forwards"] + run["backwards"] for run in runs) * count / full / done.passes
        gap = max(done.standing(eps) - one for eps, one in zip(GRID, stands, strict=True))
        figures[name] = {"images_above": gap, "pass_ratio": round(share, 1), "autoattack": stands}
    worst = max(row["images_above"] for row in figures.values())
    return {"quick_images_above": worst, "quick_images": count, "quick_networks": figures}


def _passes(found: Attacked) -> int:
    return int(found.forwards.sum() + found.backwards.sum())


@torch.no_grad()
def _stands(model: nn.Module, found: Attacked, y: Tensor) -> int:
    return int((model(found.images).argmax(1) == y).sum()) if len(y) else 0


KEYS = (
    "curve_pass_ratio",
    "curve_time_ratio",
    "adaptive_pass_ratio",
    "adaptive_images_above",
    "lipschitz_pass_ratio_025_audited",
    "curve_images_above",
    "lipschitz_pass_ratio_025",
    "lipschitz_pass_ratio_05",
    "single_eps_time_ratio",
    "weak_model_time_ratio",
    "quick_images_above",
)


def main() -> None:
    given = arguments(__doc__ or "", PARTS)
    path = ROOT / "reports" / "benchmarks" / "attacks.json"
    kept: dict[str, Any] = json.loads(path.read_text()).get("figures", {}) if path.is_file() and not given.quick else {}
    work: dict[str, Callable[[bool], dict[str, Any]]] = {
        "curve": curve,
        "adaptive": adaptive,
        "lipschitz": lipschitz,
        "single": single,
        "quick": quick,
    }
    about = {"machine": machine(given.device), "date": date.today().isoformat(), "seed": 0, "data": images(1).digest}
    for part in PARTS if given.part == "all" else [given.part]:
        kept[part] = work[part](given.quick) | about
        print(part, json.dumps(kept[part]), flush=True)
    flat = {key: value for part in kept.values() for key, value in part.items()}
    finish(
        "attacks", {key: flat[key] for key in KEYS if key in flat} | {"networks": list(RECIPES), "figures": kept}, given, SOURCES
    )


if __name__ == "__main__":
    main()
