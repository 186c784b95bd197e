"""Time and memory of one training step of every method beside plain training: VGG-11, batch 128, CIFAR-10 images, float32.

    nice -n 10 python benchmarks/training_step.py --threads 1      # a quarter of an hour on one core
    python benchmarks/training_step.py --part costs                # one part (the file keeps the others); a killed one goes on
    python benchmarks/training_step.py --quick                     # four methods at batch 4, one round, no result file

Part `costs`: each method in a process of its own, first alone for its peak memory, then in turn with the plain step for the
ratio of the medians. A method that does not finish in its share of time is listed under `unfinished`, never guessed. Parts
`perturbation`, `projection`, `sandwich`: what was published, re-implemented, against ours on the same weights and images; the
perturbation penalty with its weight gradient, published in the contiguous format of its code (`_same_format`: in ours,
channels-last), the projection in real steps of robust_vgg. Part `compile`: torch.compile against eager mode. Clock: CPU seconds
on one CPU thread, which neighbours on the machine disturb less; wall seconds otherwise. Memory: peak resident size of the process
on CPUs, peak allocated on CUDA.
"""

import copy
import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
import traceback
from argparse import Namespace
from collections.abc import Callable
from datetime import date
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from common import ROOT, arguments, finish, machine, sources_digest, wait
from projection import Timed
from published_perturbation import published_perturbation
from published_projection import published_projection
from published_sandwich import times

from robustbench_rkhs.data import Split
from robustbench_rkhs.lipschitz.reshaped import as_matrix, weighted
from robustbench_rkhs.training.penalties import AdversarialPerturbation
from robustbench_rkhs.training.recipe import TrainRecipe
from robustbench_rkhs.training.run import Run

PLAIN = {"attack": "null", "projections": "[]", "penalties": "[]", "validate_with": "null"}
METHODS: dict[str, dict[str, str]] = {  # a new method adds a line here: what its recipe has that plain training has not
    "plain": {},
    "weight_decay": {"optimizer.weight_decay": "0.0005"},
    "gradient": {"penalties": "[{name: gradient}]"},
    "adversarial_perturbation": {"penalties": "[{name: adversarial_perturbation}]"},
    "loss_gradient_l2": {"penalties": "[{name: loss_gradient, norm: l2}]"},
    "loss_gradient_l1": {"penalties": "[{name: loss_gradient, norm: l1}]"},
    "spectral_norm": {"penalties": "[{name: spectral_norm}]"},
    "spectral_norm_operator": {"penalties": "[{name: spectral_norm, operator: operator}]"},
    "spectral_norm_svd": {"penalties": "[{name: spectral_norm, method: svd}]"},
    "virtual_adversarial": {"penalties": "[{name: virtual_adversarial}]"},
    "jacobian": {"penalties": "[{name: jacobian}]"},
    "jacobian_projected": {"penalties": "[{name: jacobian, projections: 1}]"},
    "curvature": {"penalties": "[{name: curvature}]"},
    "function_norm_uniform": {"penalties": "[{name: function_norm, samples: 1, sampler: {name: uniform}}]"},
    "deformation_stability": {"penalties": "[{name: deformation_stability}]"},
    "deformation_tangent": {"penalties": "[{name: deformation_tangent}]"},
    "pgd": {"attack": "{name: pgd, eps: 1.0, steps: 5, step_size: 0.3, decay: false, loss: cross_entropy, keep: last, box: none}"},
    "hinge": {"loss": "{name: hinge}"},
    "multi_margin": {"loss": "{name: multi_margin}"},
    "trades": {"loss": "{name: trades, norm: l2, eps: 1.0, steps: 5}"},
    "mma": {"loss": "{name: mma, eps_max: 1.0, steps: 5}"},
    "ibp": {"loss": "{name: ibp, eps: 0.01}"},
    "crown_ibp": {"loss": "{name: crown_ibp, eps: 0.01}"},
    "mtl_ibp": {"loss": "{name: mtl_ibp, eps: 0.01, steps: 5}"},
    "projection_reshaped": {"projections": "[{name: spectral, tau: 0.8, operator: reshaped}]"},
    "projection_operator": {"projections": "[{name: spectral, tau: 0.8, operator: operator}]"},
}
QUICK = ("plain", "adversarial_perturbation", "pgd", "projection_reshaped")
STEPS = 5
"""Ascent steps of the perturbation penalty, as published."""


PARTS = ("costs", "perturbation", "projection", "sandwich", "compile")
PROVENANCE = ("benchmark", "quick", "command", "machine", "torch", "date", "sources")
"""Keys that `finish` writes."""


class Task:
    """What every child process is given: where the images are, how many, how often, on what."""

    def __init__(self, given: Namespace, file: Path) -> None:
        self.device, self.threads, self.file = given.device, given.threads, file
        self.batch, self.rounds, self.limit = (4, 1, 10.0) if given.quick else (128, 5, 40.0)
        self.quick = given.quick

    def clock(self) -> float:
        wait(self.device)
        alone = torch.device(self.device).type == "cpu" and self.threads == 1
        return time.process_time() if alone else time.perf_counter()

    def seconds(self, work: Callable[[], Any]) -> float:
        started = self.clock()
        work()
        return self.clock() - started

    def load(self) -> Split:
        """The batch, as a training split."""
        return torch.load(self.file, weights_only=False)

    def stepper(self, name: str) -> Callable[[], None]:
        """One training step of a method, again and again from one seed."""
        split = self.load().take(torch.arange(self.batch))
        run = Run(recipe(name, self.batch), split, self.device)
        split = split.to(self.device)
        run.prepare(split)
        batch = next(iter(run.batches(split)))
        return lambda: run.step(*batch)

    def peak(self) -> float:
        """MiB."""
        if torch.device(self.device).type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def recipe(name: str, batch: int) -> TrainRecipe:
    changes = PLAIN | {"data.crop": "0", "data.flip": "false", "batch_size": str(batch)} | METHODS[name]
    return TrainRecipe.read("robust_vgg_small", changes)


def write_images(task: Task) -> dict[str, Any]:
    """Real images, kept in a file so that no child pays for the whole data set's memory."""
    splits = recipe("plain", task.batch).data.load()
    torch.save(splits.train.take(torch.arange(min(640, len(splits.train)))), task.file)
    return {"digest": splits.train.digest}


def measure(task: Task, name: str) -> dict[str, float]:
    """Peak memory alone, then seconds in turn with the plain step until the rounds or a quarter of the limit are used up."""
    step = task.stepper(name)
    ours = [task.seconds(step)]
    quickly = ours[0] < task.limit / 10
    if quickly:  # the first was a warm-up then
        ours = [task.seconds(step)]
    peak = task.peak()
    plain = task.stepper("plain")
    plain()
    plains, used = [task.seconds(plain)], 0.0
    while len(plains) < task.rounds and used < task.limit / 4:
        plains.append(task.seconds(plain))
        if quickly:
            ours.append(task.seconds(step))
            used += ours[-1]
        used += plains[-1]
    seconds, plain_seconds = statistics.median(ours), statistics.median(plains)
    return {"seconds": seconds, "ratio": seconds / plain_seconds, "peak": peak, "rounds": len(ours)}


def perturbation(task: Task) -> dict[str, float]:
    """Value and weight gradient of the published penalty and of ours, at the published steps."""
    split = task.load().take(torch.arange(task.batch)).to(task.device)
    ours = Run(recipe("plain", task.batch), split, task.device).model
    contiguous = copy.deepcopy(ours).to(memory_format=torch.contiguous_format)
    x, y = split.x.contiguous(memory_format=torch.channels_last), split.y
    penalty, values = AdversarialPerturbation(eps=1.0, steps=STEPS), {}

    def mine() -> None:
        ours.zero_grad()
        values["mine"] = penalty(ours, x, y)
        values["mine"].backward()

    def published(model: torch.nn.Module, images: torch.Tensor, name: str) -> None:
        values[name] = published_perturbation(model, images, 1.0, STEPS)
        model.zero_grad()  # of what the search leaves behind
        values[name].backward()

    works: dict[str, Callable[[], None]] = {
        "mine": mine,
        "published": lambda: published(contiguous, split.x, "published"),
        "again": mine,
        "same format": lambda: published(ours, x, "same format"),
    }
    penalty(ours, x[:2], y[:2])  # warm
    rounds = 1 if torch.device(task.device).type == "cpu" else task.rounds
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(task.seconds(work))
    middle = {name: statistics.median(some) for name, some in times.items()}
    seconds = statistics.median(times["mine"] + times["again"])
    return {
        "adversarial_perturbation_speedup": middle["published"] / seconds,
        "adversarial_perturbation_speedup_same_format": middle["same format"] / seconds,
        "adversarial_perturbation_error": abs(values["mine"].item() / values["published"].item() - 1),
        "adversarial_perturbation_value": values["mine"].item(),
        "adversarial_perturbation_seconds": seconds,
    }


def projection(task: Task) -> dict[str, float | None]:
    """The published projection of every weight against ours, in the steps of robust_vgg once its projection is at work."""
    if task.quick:  # the published one alone takes a minute
        return {"projection_speedup": None}
    settings = {"projections.0.kappa": "null", "validate_with": "null", "batch_size": str(task.batch)}
    split = task.load()
    run = Run(TrainRecipe.read("robust_vgg_published", settings), split, task.device)
    timed = Timed(run.projections[0], task.device)
    tau = timed.tau_at(0)
    run.projections = [timed]  # type: ignore[list-item]
    warm, measured = 8, 3
    ours, theirs, errors = [], [], []
    for number, (step, x, y, keys) in enumerate(islice(cycle(list(run.batches(split.to(task.device)))), warm + measured)):
        timed.keep = number >= warm
        run.step(step, x, y, keys)
        if not timed.keep:
            continue
        ours.append(timed.seconds)
        if number == warm:  # it does the same work whatever the weights
            started = time.perf_counter()
            clipped = [published_projection(matrix, tau) for matrix in timed.before]
            theirs.append(time.perf_counter() - started)
            mine = [as_matrix(m.weight.data) for m in weighted(run.model)]
            errors = [(a - b).abs().max().item() for a, b in zip(clipped, mine, strict=True)]
    return {
        "projection_speedup": theirs[0] / statistics.median(ours),
        "projection_seconds": statistics.median(ours),
        "projection_difference": max(errors),
    }


def sandwich(task: Task) -> dict[str, float | None]:
    """Forward and backward passes of the convolutions of a small CIFAR-10 network."""
    return times(task.quick, task.device)


def compile(task: Task) -> dict[str, float]:
    """Forward and backward of plain training by torch.compile, over eager mode: above one it does not help."""
    split = task.load().take(torch.arange(task.batch)).to(task.device)
    model = Run(recipe("plain", task.batch), split, task.device).model
    x, y, compiled = split.x.contiguous(memory_format=torch.channels_last), split.y, torch.compile(model)
    works = {
        "eager": lambda: torch.nn.functional.cross_entropy(model(x), y).backward(),
        "compiled": lambda: torch.nn.functional.cross_entropy(compiled(x), y).backward(),
    }
    started = time.perf_counter()
    works["compiled"]()
    once = time.perf_counter() - started
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(task.rounds + 1):
        for name, work in works.items():
            times[name].append(task.seconds(work))
    ratio = statistics.median(times["compiled"][1:]) / statistics.median(times["eager"][1:])
    return {"compiled_over_eager": ratio, "compile_seconds": once}


def apart(task: Task, work: Callable[..., dict[str, Any]], *names: str, limit: float) -> dict[str, Any] | str:
    """The answer of `work` in a process of its own, or why there is none."""
    kind = multiprocessing.get_context("spawn" if torch.device(task.device).type == "cuda" else "fork")
    receiver, sender = kind.Pipe(duplex=False)
    child = kind.Process(target=answer, args=(sender, work, task, names))
    child.start()
    sender.close()
    try:
        found = receiver.recv() if receiver.poll(limit) else f"more than {limit:.0f} s"
    except EOFError:
        found = "it died"
    child.kill()  # one that is still at it
    child.join()
    return found


def answer(sender: Any, work: Callable[..., dict[str, Any]], task: Task, names: tuple[str, ...]) -> None:
    """In the child."""
    torch.set_num_threads(task.threads)
    try:
        sender.send(work(task, *names))
    except Exception as error:
        traceback.print_exc()
        sender.send(f"{type(error).__name__}: {error}")


def costs(task: Task, figures: dict[str, Any], unfinished: dict[str, str], save: Callable[[], None]) -> None:
    """Every method's ratio and memory; those that the file holds are kept, so that a killed run goes on."""
    for key in ("cost_vs_plain", "memory_vs_plain", "seconds", "peak_mib", "rounds"):
        figures.setdefault(key, {})
    for name in QUICK if task.quick else METHODS:
        if name in figures["cost_vs_plain"] or name in unfinished:
            continue
        found = apart(task, measure, name, limit=task.limit)
        if isinstance(found, str):
            unfinished[name] = found
            continue
        figures["cost_vs_plain"][name], figures["seconds"][name] = found["ratio"], found["seconds"]
        figures["peak_mib"][name], figures["rounds"][name] = found["peak"], found["rounds"]
        figures["memory_vs_plain"][name] = found["peak"] - figures["peak_mib"]["plain"]
        print(json.dumps({name: found}), file=sys.stderr, flush=True)
        save()


def others(digest: str) -> dict[str, Any]:
    """What the result file already holds, if it was measured with the same sources."""
    path = ROOT / "reports" / "benchmarks" / "training_step.json"
    stored = json.loads(path.read_text()) if path.is_file() else {}
    return stored if stored.get("sources", {}).get("sha256") == digest else {}


def main() -> None:
    given = arguments(__doc__, PARTS)
    published = ["published_perturbation", "published_projection", "published_sandwich"]
    sources = ["training_step", "projection", *published, "common"]
    package = sorted((ROOT / "robustbench_rkhs/training/penalties").glob("*.py")) + sorted(
        (ROOT / "robustbench_rkhs/training/losses").glob("*.py")
    )
    files = [f"benchmarks/{name}.py" for name in sources] + [str(path.relative_to(ROOT)) for path in package]
    files += [
        f"robustbench_rkhs/{name}" for name in ("training/loop.py", "training/run.py", "training/projections.py", "attacks/pgd.py")
    ]
    kept = {} if given.quick else others(sources_digest(files))
    figures: dict[str, Any] = {key: value for key, value in kept.items() if key not in PROVENANCE}
    figures.setdefault("parts", {})
    unfinished: dict[str, str] = figures.setdefault("unfinished", {})
    with tempfile.TemporaryDirectory() as folder:
        task = Task(given, Path(folder) / "images.pt")
        images = apart(task, write_images, limit=60)
        assert isinstance(images, dict), images
        figures |= {"batch": task.batch, "memory_unit": "MiB above plain training", "data_digest": images["digest"]}
        figures |= {"clock": "CPU seconds" if given.device == "cpu" and given.threads == 1 else "wall seconds"}
        figures |= {"seed": recipe("plain", task.batch).seed}
        for part in PARTS if given.part == "all" else (given.part,):
            figures["parts"][part] = f"{date.today().isoformat()}, {machine(given.device)}"
            if part == "costs":
                costs(task, figures, unfinished, lambda: finish("training_step", figures, given, files, last=False))
                continue
            unfinished.pop(part, None)
            found = apart(task, globals()[part], limit=20 if given.quick else 280)
            if isinstance(found, str):
                unfinished[part] = found
            else:
                figures.update(found)
                print(json.dumps(found), file=sys.stderr, flush=True)
    finish("training_step", figures, given, files)


if __name__ == "__main__":
    main()
