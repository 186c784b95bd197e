"""Our attacks against other packages': the same verdicts, for how many passes and CPU seconds, on one thread.

    python benchmarks/attacks.py                    # every part but vgg
    python benchmarks/attacks.py --quick            # a sample of each, no file written
    python benchmarks/attacks.py --part curve       # one part; the file keeps the others' figures

curve (2 minutes, and 20 of pyautoattack's where its runs are not kept): ten epsilons on an adversarially trained and a plain digits
network, one evaluation with effort standard: every survivor gets the whole ensemble at its largest open eps; against pyautoattack
at every eps (attack_peers.py; its runs are kept).
adaptive (1 minute): the same with effort adaptive.
masked (3 minutes): effort adaptive at one eps on networks built to mask gradients, against the full ensemble.
lipschitz (2 minutes): a 1-Lipschitz network, one eps: certificates, the ensemble on what they leave open, and the audit of the
certified.
single (6 minutes): RobustBench's way, that is pyautoattack's standard version at one eps with no certificate, and ours; alternating
runs: CPU seconds, at middling and at no robust accuracy.
quick (1 minute): an evaluation with effort quick, minimal-norm attacks alone.
minimal (5 minutes): our minimal-norm attacks beside foolbox's and adv-lib's (attack_minimal.py).
vgg (12 minutes, needs CIFAR-10; only when asked for): VGG-11 and 32 images at one eps in full, against pyautoattack
(attack_vgg.py).

Times on a quiet core. Each part carries the date, machine and digest of sources that it was measured with; those of the record
itself are of the last run.
"""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import attack_minimal
import attack_peers
import attack_vgg
import torch
from attack_networks import RECIPES, images, masked, network
from attack_peers import GRID, autoattack
from common import ROOT, arguments, finish, stamp
from torch import Tensor, nn

from robustbench_rkhs import verdicts
from robustbench_rkhs.attacks import Ensemble
from robustbench_rkhs.attacks.base import Attacked
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.layers.frozen import freeze
from robustbench_rkhs.verdicts import Evaluation

PARTS = ("curve", "adaptive", "masked", "lipschitz", "single", "quick", "minimal")
NETWORKS = ("adv", "std")
"""Those without a certificate."""
ATTACKS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "robustbench_rkhs" / "attacks").rglob("*.py"))
FILES = {"minimal": ("attack_minimal", "attack_networks", "attack_peers"), "vgg": ("attack_vgg", "attack_peers")}
"""What a part is measured with beside the attacks; another part: FILES_OF_OTHERS."""
FILES_OF_OTHERS = ("attacks", "attack_networks", "attack_peers")


def sources(part: str) -> list[str]:
    """The files that one part's figures come from."""
    return [f"benchmarks/{name}.py" for name in FILES.get(part, FILES_OF_OTHERS)] + ATTACKS


def ours(name: str, effort: Literal["quick", "adaptive", "standard"], count: int, grid: tuple[float, ...] = GRID) -> dict[str, Any]:
    """The whole curve of one network, by an evaluation without certificates: every pass of it is counted, its checks too."""
    model, test = network(name), images(count)
    started = time.process_time()
    done = evaluate(model, test, eps=grid, effort=effort, certificates=())
    seconds = time.process_time() - started
    rows = done.table[done.table["kind"] == "attack"]
    passes = (rows["forwards"] + rows["backwards"]).groupby(rows["method"]).sum()
    states = [verdicts.states(done, eps)["state"].value_counts() for eps in grid]
    diagnosis = diagnosed(done)
    return {
        "stands": [int(sum(state.get(one, 0) for one in ("survived", "certified", "untested"))) for state in states],
        "passes": count + int(passes.sum()) + diagnosis,
        "diagnosis": diagnosis,
        "seconds": round(seconds, 1),
        "by_attack": {str(method): int(number) for method, number in passes.items()},
    }


def diagnosed(done: Evaluation) -> int:
    """Passes of the diagnosis, on its sample of at most 64 images (16 where the effort is quick)."""
    sample = 16 if done.about.settings["effort"] == "quick" else 64
    return round(sum(one.cost for one in done.about.diagnostics) * min(sample, done.about.samples))


def peer(name: str, count: int, grid: tuple[float, ...] = GRID) -> dict[str, Any]:
    """pyautoattack at every eps: what is kept, or run now."""
    model, test = network(name), images(count)
    held = {run["eps"]: run for run in attack_peers.kept(name, test.digest, count)}
    runs = [held.get(eps) or autoattack(model, test.x, test.y, eps) for eps in grid]
    return {
        "stands": [run["stands"].count("1") for run in runs],
        "passes": sum(run["forwards"] + run["backwards"] for run in runs),
        "seconds": round(sum(run["seconds"] for run in runs), 1),
    }


def above(one: list[int], other: list[int], count: int) -> float:
    """By how many images in 300 the first curve lies above the second, at the worst eps."""
    return round(max(a - b for a, b in zip(one, other, strict=True)) * 300 / count, 2)


def curve(quick: bool, effort: Literal["adaptive", "standard"] = "standard") -> dict[str, Any]:
    count, prefix = (4 if quick else 300), ("curve" if effort == "standard" else effort)
    grid = GRID[8:] if quick else GRID
    rows = {name: {"ours": ours(name, effort, count, grid), "autoattack": peer(name, count, grid)} for name in NETWORKS}
    ratio = {
        what: round(sum(row["autoattack"][what] for row in rows.values()) / sum(row["ours"][what] for row in rows.values()), 2)
        for what in ("passes", "seconds")
    }
    worst = max(above(row["ours"]["stands"], row["autoattack"]["stands"], count) for row in rows.values())
    figures = {f"{prefix}_pass_ratio": ratio["passes"], f"{prefix}_time_ratio": ratio["seconds"], f"{prefix}_images_above": worst}
    return figures | {f"{prefix}_networks": rows, f"{prefix}_images": count}


def masking(quick: bool) -> dict[str, Any]:
    """Effort adaptive at one eps on networks built to mask gradients: there the full ensemble is the measure."""
    count, rows = 12 if quick else 40, {}
    test = images(count)
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
    return {"masked_images_above": round(worst, 2), "masked": rows, "masked_images": count}


def lipschitz(quick: bool) -> dict[str, Any]:
    """An evaluation of one eps with all certificates: what they leave open is attacked, the certified are audited."""
    count = 30 if quick else 300
    model, test = network("lip"), images(count)
    figures: dict[str, Any] = {}
    for eps, key in ((0.25, "025"), (0.5, "05")):
        library = autoattack(freeze(model), test.x, test.y, eps)
        theirs = library["forwards"] + library["backwards"]
        done = evaluate(model, test, eps=(eps,))
        states = verdicts.states(done, eps)["state"].value_counts()
        rows = done.table[done.table["kind"] == "attack"]
        passes = (rows["forwards"] + rows["backwards"]).groupby(rows["method"]).sum()
        audit = sum(int(number) for method, number in passes.items() if str(method).startswith("audit"))
        spent = 2 * count + int(passes.sum())  # a pass for the prediction, and the certificates' own
        figures |= {
            f"lipschitz_pass_ratio_{key}": round(theirs / (spent - audit), 2),
            f"lipschitz_pass_ratio_{key}_audited": round(theirs / spent, 2),
            f"lipschitz_pass_ratio_{key}_audited_and_diagnosed": round(theirs / (spent + diagnosed(done)), 2),
            f"lipschitz_{key}": {
                "certified": int(states.get("certified", 0)),
                "ours": int(states.get("certified", 0) + states.get("survived", 0) + states.get("untested", 0)),
                "autoattack": library["stands"].count("1"),
                "passes": {str(method): int(number) for method, number in passes.items()},
                "diagnosis_passes": diagnosed(done),
                "autoattack_passes": theirs,
                "winners": done.table[done.table["kind"] == "certificate"]["method"].value_counts().to_dict(),
            },
        }
    return figures | {"lipschitz_images": count}


def single(quick: bool) -> dict[str, Any]:
    """RobustBench's way, one eps and no certificate: alternating runs, medians of CPU seconds."""
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
    """Minimal-norm attacks alone, on 60 images, against AutoAttack at every eps (its passes: the share of 300)."""
    figures, count, full = {}, 4 if quick else 60, 4 if quick else 300
    grid = GRID[8:] if quick else GRID
    for name in NETWORKS:
        model, test = network(name), images(full)
        held = {run["eps"]: run for run in attack_peers.kept(name, test.digest, full)}
        runs = [held.get(eps) or autoattack(model, test.x, test.y, eps) for eps in grid]
        here = images(count)
        where = [test.index.tolist().index(index) for index in here.index.tolist() if index in test.index.tolist()]
        assert len(where) == count, "expected the smaller sample inside the larger one"
        stands = [sum(int(run["stands"][place]) for place in where) for run in runs]
        done = ours(name, "quick", count, grid)
        share = sum(run["forwards"] + run["backwards"] for run in runs) * count / full / done["passes"]
        gap = max(a - b for a, b in zip(done["stands"], stands, strict=True))
        figures[name] = {"images_above": gap, "pass_ratio": round(share, 1), "autoattack": stands, "ours": done}
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
    given = arguments(__doc__ or "", (*PARTS, "vgg"), threads=1)
    path = ROOT / "reports" / "benchmarks" / "attacks.json"
    work: dict[str, Callable[[bool], dict[str, Any]]] = {
        "curve": curve,
        "adaptive": lambda quick: curve(quick, "adaptive"),
        "masked": masking,
        "lipschitz": lipschitz,
        "single": single,
        "quick": quick,
        "minimal": attack_minimal.measure,
        "vgg": attack_vgg.measure,
    }
    about = {"seed": 0, "data": images(1).digest}
    done: dict[str, Any] = {}
    for part in PARTS if given.part == "all" else [given.part]:
        started = stamp(sources(part), given.device)  # now: a source may change while it runs
        done[part] = about | work[part](given.quick) | started
        print(part, json.dumps(done[part]), flush=True)
    kept = json.loads(path.read_text()).get("figures", {}) if path.is_file() and not given.quick else {}
    flat = {key: value for part in (kept | done).values() for key, value in part.items()}
    if "masked_images_above" in flat and "adaptive_images_above" in flat:
        flat["adaptive_images_above"] = max(flat["adaptive_images_above"], flat["masked_images_above"])
    heads = {key: flat[key] for key in KEYS if key in flat}
    finish(
        "attacks",
        heads | {"networks": list(RECIPES), "figures": kept | done},
        given,
        sorted({file for part in work for file in sources(part)}),
    )


if __name__ == "__main__":
    main()
