"""What each stage of benchmarks/gpu.py does; what it finds is written at once, so that a stage that is stopped has said it."""

import copy
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_rkhs.attacks import APGD, PGD, Attack, PublishedPGD
from robustbench_rkhs.attacks.objective import margin
from robustbench_rkhs.bounds.differentiable import gram_pairs
from robustbench_rkhs.data import Split
from robustbench_rkhs.training import checkpoint
from robustbench_rkhs.training.device_step import DeviceStep
from robustbench_rkhs.training.loop import train
from robustbench_rkhs.training.recipe import TrainRecipe
from robustbench_rkhs.training.run import Run

ROOT = Path(__file__).resolve().parent.parent
VARIANTS: dict[str, dict[str, str]] = {"eps 1.25": {"attack.eps": "1.25", "attack.step_size": "0.5"}}
"""What is trained for `robust`, one after the other in equal shares of the time; validation chooses. eps 1.5 did worse."""
GLORO = "{name: gloro, eps: 0.2, iterations: 5, schedule: {eps: {start: 0.02, end: 0.5}}}"
CERTIFIED: dict[str, dict[str, str]] = {
    "radius, lr 0.001": {},
    "radius, lr 0.0003": {"optimizer.lr": "0.0003"},
    "gloro, lr 0.0001": {"loss": GLORO, "optimizer.lr": "0.0001"},
}
"""What the pilot tries for `certified`; what certifies most validation images is trained, the first where there was no pilot."""
CAREFUL = {"careful": {"attack.eps": "1.25", "attack.step_size": "0.5", "attack_warmup": "0.6", "optimizer.lr": "0.04"}}
"""What is trained where the pilot saw none of them learn."""
TOY = {
    "robust": {
        "data": "{name: digits, validation: 200, crop: 1}",
        "network": "{name: mlp, hidden: [128]}",
        "compile": "false",
        "precision": "float32",
        "batch_size": "32",
    },
    "certified": {
        "data": "{name: digits, validation: 200, crop: 1}",
        "network": "{name: liresnet, blocks: 1, channels: 8, features: 16}",
        "compile": "false",
        "precision": "float32",
        "batch_size": "32",
        "optimizer.lr": "0.01",
    },
}
"""What --quick changes of a recipe."""
EVALUATED = 1000
"""Test images of the evaluation: the first of the official order."""


class Stage:
    """What a stage is given: where to write, how long it has, on which device, at which size."""

    def __init__(self, out: Path, findings: Path, seconds: float, device: str, quick: bool) -> None:
        self.out, self.findings, self.quick = out, findings, quick
        self.until = time.monotonic() + seconds
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.cuda = torch.device(self.device).type == "cuda"
        if self.cuda:
            torch.zeros(1, device=self.device)  # it fails here or nowhere
            torch.set_float32_matmul_precision("high")

    def say(self, **found: Any) -> None:
        """One line of what was found, at once."""
        with self.findings.open("a") as lines:
            lines.write(json.dumps(found) + "\n")

    def left(self) -> float:
        return self.until - time.monotonic()

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any], times: int) -> float:
        """Seconds a call takes, over so many calls, after one to warm up."""
        work()
        self.wait()
        started = time.perf_counter()
        for _ in range(times):
            work()
        self.wait()
        return (time.perf_counter() - started) / times

    def recipe(self, name: str, kind: str, changes: dict[str, str]) -> TrainRecipe:
        return TrainRecipe.read(name, (TOY[kind] if self.quick else {}) | changes)


def tests(stage: Stage) -> None:
    """The tests marked `device`, on this device."""
    command = [sys.executable, "-m", "pytest", "tests/test_device.py", "-q", "-m", "device", "-p", "no:cacheprovider"]
    environment = os.environ | {"RKHS_DEVICE": stage.device, "GIT_PYTHON_REFRESH": "quiet"}
    command += ["-k", "not attacks or pgd"] if stage.quick else ["-n", "6"] if stage.cuda else []
    path = stage.out / "pytest.log"
    with path.open("w") as log:
        done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, env=environment, timeout=max(stage.left(), 1))
    lines = path.read_text().strip().splitlines()
    stage.say(pytest=lines[-1:], failed=[line for line in lines if line.startswith(("FAILED", "ERROR"))][:20])
    sys.exit(done.returncode)


def ceiling(stage: Stage) -> float:
    """Operations a second of a large bf16 matrix product."""
    size = 512 if stage.quick or not stage.cuda else 8192
    one = torch.randn(size, size, device=stage.device, dtype=torch.bfloat16)
    other = torch.randn(size, size, device=stage.device, dtype=torch.bfloat16)
    return 2 * size**3 / stage.seconds(lambda: one @ other, 3 if stage.quick else 20)


def noise(count: int, device: str, side: int = 32) -> Split:
    """Random images: what is timed does not depend on them."""
    x, y = torch.rand(count, 3, side, side), torch.randint(0, 10, (count,))
    return Split("noise", "train", x, y, torch.arange(count), 10, "none").to(device)


def operations(model: nn.Module) -> float:
    """Floating-point operations of one image's forward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counted, torch.no_grad():
        copy.deepcopy(model).cpu().float()(torch.rand(1, 3, 32, 32))
    return float(counted.get_total_flops())


def stepped(stage: Stage, recipe: TrainRecipe, times: int, side: int = 32) -> dict[str, Any]:
    """Seconds a step takes, what it is made of, and how long it took to prepare."""
    split = noise(4 * recipe.batch_size, stage.device, side)
    run = Run(recipe, split, stage.device)
    run.prepare(split)
    started = time.perf_counter()
    if recipe.on_device:
        step = DeviceStep(run, split)
        step.begin()
        how, work = step.how, lambda: step(0)
    else:
        batch = next(iter(run.batches(split)))
        how, work = {}, lambda: run.step(*batch)
    work()
    stage.wait()
    prepared = time.perf_counter() - started
    seconds = stage.seconds(work, times)
    run.watch.ask(0)
    return {
        "ms": round(1e3 * seconds, 3),
        "images_per_second": round(recipe.batch_size / seconds),
        "prepared": round(prepared, 1),
        **how,
    }


def throughput(stage: Stage) -> None:
    """Images a second: the step of robust_vgg in its stages of haste, and the steps of bounded layers."""
    times, peak = (1, 0.0) if stage.quick else (30, 0.0)
    peak = ceiling(stage)
    stage.say(ceiling_tflops=round(peak / 1e12, 1), device=describe(stage))
    changes = {"data": "{name: cifar10, crop: 4, flip: true}", "validate_with": "null"}
    changes |= {"batch_size": "4", "attack.steps": "1", "precision": "float32"} if stage.quick else {}
    fast = {"ordinary": {"on_device": "false", "compile": "false"}, "captured": {"compile": "false"}, "compiled": {}}
    for name, more in fast.items():
        if (stage.quick and "compiled" in name) or stage.left() < 5:
            continue
        recipe = TrainRecipe.read("robust_vgg", changes | more)
        found = attempt(lambda recipe=recipe: stepped(stage, recipe, times))
        if "ms" in found and recipe.attack:
            model = recipe.network.build((3, 32, 32), 10)
            each = (2 * recipe.attack.steps + 3) * operations(model)
            found |= {"tflops": round(each * found["images_per_second"] / 1e12, 2)}
            found |= {"share_of_ceiling": round(each * found["images_per_second"] / peak, 4)}
        stage.say(**{f"vgg {name}": found})
    others: dict[str, dict[str, str]] = {"cifar10_radius": {}, "cifar10_sandwich": {}, "cifar10_bro": {}}
    small = {"batch_size": "2", "precision": "float32"} if stage.quick else {}
    if stage.quick:
        others["cifar10_radius"] = {"network.blocks": "1", "network.channels": "8", "network.features": "16"}
    plain = {"data": "{name: cifar10}", "validate_with": "null", "certify_eps": "null"} | small
    for name, more in others.items():
        if stage.left() > 5:
            recipe = TrainRecipe.read(name, plain | more)
            stage.say(**{name: attempt(lambda recipe=recipe: stepped(stage, recipe, *((1, 8) if stage.quick else (10, 32))))})
    if stage.cuda:
        stage.say(peak_memory_gib=round(torch.cuda.max_memory_allocated() / 2**30, 2))


def attempt(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What it finds, or why it does not."""
    try:
        return work()
    except Exception as error:  # one figure that fails must not cost the others
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def describe(stage: Stage) -> str:
    return torch.cuda.get_device_name() if stage.cuda else f"CPU, {torch.get_num_threads()} threads"


def trained(stage: Stage, kind: str, name: str, changes: dict[str, str], folder: Path, seconds: float) -> dict[str, Any]:
    """Train a recipe for so long; its last metrics, how many steps it took and what its best epoch scored."""
    changes = changes | {"seconds": f"{seconds:.1f}", "epochs": "10" if stage.quick else "100000"}
    if stage.quick:  # digits lie nearer to each other
        changes = {key: str(float(value) / 5) if key.startswith("attack.") else value for key, value in changes.items()}
    flags = [part for key, value in changes.items() for part in (f"--{key}", value)]
    command = shlex.join(["rkhs-train", "--model", name, "--device", stage.device, "--half", *flags])
    recipe = stage.recipe(name, kind, changes)
    started = time.monotonic()
    train(recipe, folder, device=stage.device, command=command, fresh=True, half=True, save_seconds=6000)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    judged = [line for line in lines if "validation_clean" in line]
    best = max(judged, key=lambda line: (line.get("validation_robust", -1), line["validation_clean"]))
    kept = {key: round(value, 4) for key, value in best.items() if key.startswith("validation")}
    return {
        **kept,
        "best_epoch": best["epoch"],
        "epochs": len(lines),
        "steps": lines[-1].get("steps"),
        "first_losses": [round(line["loss"], 3) for line in lines[:3]],
        "last_loss": round(lines[-1]["loss"], 4),
        "batch": recipe.batch_size,
        "seconds": round(time.monotonic() - started, 1),
    }


def pilot(stage: Stage) -> None:
    """Both trainings for a moment, on what data there is: do they learn? What had its chance and did not is not trained again."""
    refused: list[str] = []
    for name, changes in VARIANTS.items():
        seconds, folder = max(0.25 * stage.left(), 2), stage.out / "pilot" / name.replace(" ", "_")
        found = attempt(lambda: trained(stage, "robust", "robust_vgg", changes, folder, seconds))  # noqa: B023
        refused += [name] if (found.get("steps") or 0) >= 500 and found["validation_clean"] < 0.15 else []
        stage.say(**{f"robust {name}": found})
        (stage.out / "pilot.json").write_text(json.dumps(refused))
    shares: dict[str, float] = {}
    for place, (name, changes) in enumerate(CERTIFIED.items()):
        seconds, folder = max(stage.left() / (len(CERTIFIED) - place) - 2, 2), stage.out / "pilot" / f"certified_{place}"
        found = attempt(lambda: trained(stage, "certified", "cifar10_radius", changes, folder, seconds))  # noqa: B023
        found |= attempt(lambda: nearly_proved(stage, folder)) if "steps" in found else {}  # noqa: B023
        shares[name] = found.get("nearly_certified", -1.0) if (found.get("steps") or 0) >= 300 else -1.0  # it had its chance
        stage.say(**{f"certified {name}": found})
        (stage.out / "certified.json").write_text(json.dumps(max(shares, key=lambda one: shares[one])))


@torch.no_grad()
def nearly_proved(stage: Stage, folder: Path) -> dict[str, Any]:
    """Share of validation images whose margin over the differentiable bound reaches 36/255: nearly the certificate, at once."""
    found = checkpoint.load(folder)
    model, split = found.model.to(stage.device), found.recipe.data.load().validation.to(stage.device)
    bounds = gram_pairs(model, split.shape, split.classes, 8)[split.y].scatter(1, split.y[:, None], 1.0)
    logits = model(split.x)
    gaps = ((logits.gather(1, split.y[:, None]) - logits) / bounds).scatter(1, split.y[:, None], torch.inf)
    return {"nearly_certified": round((gaps.amin(1) >= 36 / 255).float().mean().item(), 4), "lipschitz": bounds.max().item()}


def robust(stage: Stage) -> None:
    """robust_vgg, in variants; the best on validation is kept under its name."""
    piloted = stage.out / "pilot.json"
    refused: list[str] = json.loads(piloted.read_text()) if piloted.is_file() else []
    variants = {name: changes for name, changes in VARIANTS.items() if name not in refused} or CAREFUL
    results: dict[str, tuple[float, float, Path]] = {}
    for place, (name, changes) in enumerate(variants.items()):
        folder = stage.out / "runs" / f"robust_{place}"
        seconds = max(stage.left() / (len(variants) - place) - 4, 2)
        found = attempt(lambda: trained(stage, "robust", "robust_vgg", changes, folder, seconds))  # noqa: B023
        stage.say(**{name: found})
        if "validation_clean" in found:
            results[name] = (found.get("validation_robust", 0.0), found["validation_clean"], folder)
            best = max(results, key=lambda one: results[one][:2])
            shutil.copytree(results[best][2], stage.out / "checkpoints" / "robust_vgg", dirs_exist_ok=True)
            stage.say(kept=best)
    if not results:
        sys.exit("nothing was trained")


def certified(stage: Stage) -> None:
    """A network trained on its own certificate."""
    folder, piloted = stage.out / "checkpoints" / "cifar10_radius", stage.out / "certified.json"
    name = json.loads(piloted.read_text()) if piloted.is_file() else next(iter(CERTIFIED))
    stage.say(trains=name)
    stage.say(**trained(stage, "certified", "cifar10_radius", CERTIFIED[name], folder, max(stage.left() - 6, 2)))
    stage.say(**attempt(lambda: nearly_proved(stage, folder)))


def accuracy(stage: Stage, model: nn.Module, split: Split, attack: Attack | None) -> dict[str, Any]:
    """Share of images still right after the attack, among all."""
    started, right = time.perf_counter(), 0
    for x, y, keys in zip(split.x.split(500), split.y.split(500), split.index.split(500), strict=True):
        if attack is not None:
            x = attack(model, x, y, keys).images
        with torch.no_grad():
            right += int((margin(model(x), y) > 0).sum())
    stage.wait()
    return {"accuracy": right / len(split), "seconds": round(time.perf_counter() - started, 2)}


def evaluation(stage: Stage) -> None:
    """What was trained, on the first test images: attacks in the box and without, and certified radii."""
    folder = stage.out / "checkpoints"
    if (folder / "cifar10_radius" / "config.json").is_file():
        stage.say(certified=attempt(lambda: proved(stage, folder / "cifar10_radius")))
    if not (folder / "robust_vgg" / "config.json").is_file():
        sys.exit("no robust_vgg to evaluate")
    found = checkpoint.load(folder / "robust_vgg")
    model = found.model.to(stage.device).eval()
    test = found.recipe.data.test()
    first: Tensor = torch.arange(min(50 if stage.quick else EVALUATED, len(test)))
    whole, few = test.to(stage.device), test.take(first).to(stage.device)
    steps = 5 if stage.quick else 100
    attacks: dict[str, Attack | None] = {
        "clean": None,
        "published PGD, no box": PublishedPGD(eps=1.0, steps=steps),
        "PGD margin, no box": PGD(eps=1.0, steps=steps, box="none", targets=0),
        "PGD margin": PGD(eps=1.0, steps=steps),
        "APGD": APGD(eps=1.0, steps=steps),
        "APGD targeted": APGD(eps=1.0, steps=steps, loss="targeted"),
    }
    stage.say(clean_on_all=attempt(lambda: accuracy(stage, model, whole, None)), images=len(few))
    for name, attack in attacks.items():
        if stage.left() > 3:
            stage.say(**{name: attempt(lambda: accuracy(stage, model, few, attack))})  # noqa: B023
    if stage.left() > 10 and not stage.quick:
        stage.say(ensemble=attempt(lambda: ensemble(stage, model, few)))


def proved(stage: Stage, folder: Path) -> dict[str, Any]:
    """Clean accuracy, and how many images the margin certificate proves, of the weights as stored."""
    from robustbench_rkhs.certificates import MarginCertificate

    found, started = checkpoint.load(folder), time.perf_counter()
    test = found.recipe.data.test()
    few = test.take(torch.arange(min(50 if stage.quick else EVALUATED, len(test))))
    radii = MarginCertificate().radii(found.model, few.x, few.y)
    shares = {f"certified at {eps}/255": (radii >= eps / 255).float().mean().item() for eps in (36, 72, 108)}
    return {
        "clean": (radii > 0).float().mean().item(),
        **shares,
        "images": len(few),
        "seconds": round(time.perf_counter() - started, 1),
    }


def ensemble(stage: Stage, model: nn.Module, split: Split) -> dict[str, Any]:
    """The standard evaluation at eps 1, in the box, with the time that is left; beside AutoAttack where that is installed."""
    from robustbench_rkhs import evaluate
    from robustbench_rkhs.verdicts import states

    started = time.perf_counter()
    settings = {"eps": (1.0,), "certificates": (), "diagnostics": False, "budget": max(stage.left() - 4, 1)}
    found = evaluate(model, split, name="robust_vgg", folder=stage.out / "verdicts", device=stage.device, **settings)
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "complete": found.about.complete,
        "states": states(found, 1.0)["state"].value_counts().to_dict(),
    }


RUNS = {run.__name__: run for run in (tests, throughput, pilot, robust, certified, evaluation)}
