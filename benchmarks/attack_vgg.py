"""Part `vgg` of attacks.py: the committed VGG-11 on CIFAR-10, one l2 eps, our ensemble against pyautoattack, both in full.

    RKHS_DATA=... python benchmarks/attacks.py --part vgg            # 25 minutes on one quiet core
    RKHS_DATA=... python benchmarks/attacks.py --part vgg --quick    # 2 images at a large eps, half a minute

The network is checkpoints/robust_vgg; the images are the first 64 that it gets right of a stratified sample of the test images (a
wrong one costs nobody anything); at eps 2.25 about a third of them stands. Then a curve of ten epsilons on the same images, by an
evaluation with effort quick, ours alone. Each run on a block of 32 images is kept in reports/benchmarks/attack_peers once it is
done (vgg_autoattack.json, vgg_ours.json, vgg_curve.json); ours are run again where the network or any source of the attacks has
changed since.
"""

import time
from typing import Any

import attack_peers
import torch
from common import ROOT, sources_digest
from torch import Tensor, nn

from robustbench_rkhs import verdicts
from robustbench_rkhs.attacks import Ensemble
from robustbench_rkhs.data import Split
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.runtime.digests import weights_digest
from robustbench_rkhs.training.checkpoint import load

FOLDER = "checkpoints/robust_vgg"
EPS, COUNT = 2.25, 64
BLOCK = 32
"""Images of one run: what an interruption can lose."""
GRID = tuple(round(0.4 * step, 1) for step in range(1, 11))
ATTACKS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "robustbench_rkhs" / "attacks").rglob("*.py"))


def subject(count: int) -> tuple[nn.Module, Split]:
    """The network, and the first test images that it gets right."""
    checkpoint = load(ROOT / FOLDER)
    model, test = checkpoint.model.eval(), checkpoint.recipe.data.test().sample(256, 0)
    with torch.no_grad():
        right = (model(test.x).argmax(1) == test.y).nonzero().flatten()
    assert len(right) >= count, f"expected {count} images that are right, found {len(right)}"
    return model, test.take(right[:count])


def ensemble(model: nn.Module, test: Split, eps: float) -> dict[str, Any]:
    """Ours, in the form of `attack_peers.autoattack`."""
    started = time.process_time()
    found = Ensemble(eps=eps)(model, test.x, test.y, test.index)
    seconds = time.process_time() - started
    return {
        "eps": eps,
        "stands": _stands(model, found.images, test.y),
        "forwards": int(found.forwards.sum()),
        "backwards": int(found.backwards.sum()),
        "seconds": round(seconds, 2),
    }


def sides(model: nn.Module, test: Split, eps: float, keep: bool) -> dict[str, list[dict[str, Any]]]:
    """Runs of both sides, in turn on one block of images after the other; what is kept is not run again."""
    known_of = {"ours": _ours_known(model), "autoattack": _known(model)}
    runs = {who: attack_peers.kept(f"vgg_{who}", test.digest, BLOCK, **known_of[who]) for who in known_of}
    chosen: dict[str, list[dict[str, Any]]] = {who: [] for who in known_of}
    for start in range(0, len(test), BLOCK):
        part = test.take(torch.arange(start, min(start + BLOCK, len(test))))
        about = {"index": part.index.tolist(), "eps": eps}
        for who in known_of:
            held = [run for run in runs[who] if about == {key: run[key] for key in about}]
            if not held:
                args = (model, part) if who == "ours" else (model, part.x, part.y)
                held = [(ensemble if who == "ours" else attack_peers.autoattack)(*args, eps) | about]
                runs[who].append(held[0])
                if keep:
                    attack_peers.keep(f"vgg_{who}", test.digest, BLOCK, runs[who], **known_of[who])
                    print("vgg", who, held[0], flush=True)
            chosen[who].append(held[0])
    return chosen


def measure(quick: bool) -> dict[str, Any]:
    """Verdicts, passes and CPU seconds of both sides at one eps, and the curve."""
    model, test = subject(2 if quick else COUNT)
    eps = 12.0 if quick else EPS
    runs = sides(model, test, eps, keep=not quick)
    total = {who: _total(several) for who, several in runs.items()}
    ours, theirs = total["ours"], total["autoattack"]
    pairs = list(zip(ours["stands"], theirs["stands"], strict=True))
    return {
        "data": test.digest,
        "vgg_eps": eps,
        "vgg_images": len(test),
        "vgg_images_above": ours["standing"] - theirs["standing"],
        "vgg_broken_by_ours_alone": pairs.count(("0", "1")),
        "vgg_broken_by_autoattack_alone": pairs.count(("1", "0")),
        "vgg_time_ratio": round(theirs["seconds"] / max(ours["seconds"], 1e-9), 2),
        "vgg_pass_ratio": round(theirs["passes"] / max(ours["passes"], 1), 2),
        "vgg": total,
        "vgg_index": test.index.tolist(),
        "vgg_curve": curve(model, test) if quick else kept_curve(model, test),
    }


def _total(runs: list[dict[str, Any]]) -> dict[str, Any]:
    stands = "".join(run["stands"] for run in runs)
    sums = {key: sum(run[key] for run in runs) for key in ("forwards", "backwards", "seconds")}
    passes = sums["forwards"] + sums["backwards"]
    seconds = [run["seconds"] for run in runs]
    return {"standing": stands.count("1"), "stands": stands, "passes": passes} | sums | {"seconds_by_block": seconds}


def curve(model: nn.Module, test: Split) -> dict[str, Any]:
    """Ten epsilons by our minimal-norm attacks alone; the diagnosis is in the seconds and not in the passes."""
    started = time.process_time()
    done = evaluate(model, test, eps=GRID, effort="quick", certificates=())
    seconds = time.process_time() - started
    rows = done.table[done.table["kind"] == "attack"]
    states = [verdicts.states(done, eps)["state"].value_counts() for eps in GRID]
    passes = int((rows["forwards"] + rows["backwards"]).sum())
    stands = [int(sum(state.get(one, 0) for one in ("survived", "untested"))) for state in states]
    return {"eps": list(GRID), "stands": stands, "passes": passes, "seconds": round(seconds, 1)}


def kept_curve(model: nn.Module, test: Split) -> dict[str, Any]:
    """The curve as it is kept, or measured now."""
    about = {"index": test.index.tolist(), "eps": list(GRID)}
    for run in attack_peers.kept("vgg_curve", test.digest, len(test), **_ours_known(model)):
        if about == {key: run[key] for key in about}:
            return run
    done = about | curve(model, test)
    attack_peers.keep("vgg_curve", test.digest, len(test), [done], **_ours_known(model))
    return done


def _known(model: nn.Module) -> dict[str, Any]:
    """What a kept run goes stale by, whoever ran."""
    return {"weights": weights_digest(model.state_dict()), "threads": torch.get_num_threads()}


def _ours_known(model: nn.Module) -> dict[str, Any]:
    return _known(model) | {"sources": sources_digest(ATTACKS)}


@torch.no_grad()
def _stands(model: nn.Module, images: Tensor, y: Tensor) -> str:
    return "".join(str(int(one)) for one in model(images).argmax(1) == y)
