"""A training step of every published Lipschitz network beside plain convolutions of the same shapes; a profile where it is slow.

    nice -n 10 python benchmarks/published_steps.py            # all networks, one thread
    python benchmarks/published_steps.py --only sll --quick    # those whose name contains sll, at small batches

A step: forward and backward of the cross-entropy, gradients of all weights, in training mode. The plain network is the same one
frozen (`layers.frozen`): its layers as ordinary convolutions and matrix products of the same shapes, whose weights need gradients
too. CPU seconds of both at two batch sizes; what the layers cost apart from the images is the part that does not grow with the
batch. `ratio` is at the published batch of 256, by the line through both. Where it exceeds 5, the three largest operations of a
step are listed with their shares. Each network of the record says of which day and code it is, as --only keeps the others.
"""

import json
import statistics
import sys
import time
from datetime import date
from typing import Any

import torch
from common import ROOT, arguments, finish, machine, sources_digest
from torch import nn

from robustbench_rkhs.layers.frozen import freeze
from robustbench_rkhs.networks.kwl import DNN, KWL
from robustbench_rkhs.networks.lipschitz_resnet import LipschitzResNet
from robustbench_rkhs.nodes.paths import PACKAGE
from robustbench_rkhs.training.recipe import TrainRecipe

SOURCES = sorted(str(path.relative_to(ROOT)) for room in ("layers", "networks") for path in (PACKAGE / room).glob("*.py"))
CIFAR = (3, 32, 32)
PUBLISHED = 256
RECIPES = ("cifar10_bro", "cifar10_liresnet")
NETWORKS: dict[str, Any] = {
    **{f"kwl_{family}": KWL(family=family) for family in ("plain", "aol", "orthogonal")},
    "kwl_sandwich": KWL(head="published"),
    "dnn": DNN(),
    "sll_small": LipschitzResNet(),
    "sll_medium": LipschitzResNet(blocks=30, channels=60, dense_blocks=10),
    "sll_large": LipschitzResNet(blocks=90, channels=60, dense_blocks=15),
}
"""As published, for CIFAR-100."""


def plain(model: nn.Module) -> nn.Module:
    """The network with ordinary layers of the same shapes, all of whose weights need gradients."""
    found = freeze(model).train()
    for parameter in found.parameters():
        parameter.requires_grad_(True)
    for module in found.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_floating_point() and buffer.dim() > 1:  # weights that were computed once
                delattr(module, name)
                module.register_parameter(name, nn.Parameter(buffer))
    return found


def step(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    for parameter in model.parameters():
        parameter.grad = None
    nn.functional.cross_entropy(model(x), y).backward()


def seconds(model: nn.Module, batch: int, rounds: int) -> float:
    """CPU seconds of a step, after one that is not counted."""
    x, y = torch.rand(batch, *CIFAR), torch.zeros(batch, dtype=torch.int64)
    times = []
    for _ in range(rounds + 1):
        started = time.process_time()
        step(model, x, y)
        times.append(time.process_time() - started)
    return statistics.median(times[1:])


def largest(model: nn.Module, batch: int) -> dict[str, float]:
    """The three operations that take most of a step, and their shares."""
    x, y = torch.rand(batch, *CIFAR), torch.zeros(batch, dtype=torch.int64)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step(model, x, y)
    spent = {one.key: one.self_cpu_time_total for one in profile.key_averages()}
    whole = sum(spent.values())
    return {name: round(spent[name] / whole, 3) for name in sorted(spent, key=lambda one: -spent[one])[:3]}


def compared(model: nn.Module, batches: tuple[int, int], rounds: int) -> dict[str, Any]:
    """A network beside its plain twin."""
    twin = plain(model.eval())
    model.train()
    ours, theirs = ([seconds(one, batch, rounds) for batch in batches] for one in (model, twin))
    at = [low + (high - low) * (PUBLISHED - batches[0]) / (batches[1] - batches[0]) for low, high in (ours, theirs)]
    found: dict[str, Any] = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": [round(one, 3) for one in ours],
        "plain_seconds": [round(one, 3) for one in theirs],
        "ratio_measured": [round(one / other, 2) for one, other in zip(ours, theirs, strict=True)],
        "ratio": round(at[0] / max(at[1], 1e-9), 2),
    }
    if found["ratio"] > 5 or found["ratio_measured"][1] > 5:
        found["largest"] = largest(model, batches[1])
    return found


def main() -> None:
    only = ""
    if "--only" in sys.argv:
        at = sys.argv.index("--only")
        only = sys.argv[at + 1]
        del sys.argv[at : at + 2]
    given = arguments(__doc__ or "", threads=1)
    batches, rounds = ((2, 4), 1) if given.quick else ((16, 64), 2)
    kept = ROOT / "reports" / "benchmarks" / "published_steps.json"
    found: dict[str, Any] = dict(json.loads(kept.read_text())["networks"]) if only and kept.is_file() else {}
    recipes = {name: TrainRecipe.read(ROOT / "models" / f"{name}.yaml").network for name in RECIPES}
    for name, network in {**NETWORKS, **recipes}.items():
        if only in name:
            torch.manual_seed(0)
            of = {"date": date.today().isoformat(), "machine": machine("cpu"), "sources_sha256": sources_digest(SOURCES)}
            found[name] = compared(network.build(CIFAR, 100), batches, rounds) | {"of": of}
            print(name, json.dumps(found[name]), flush=True)
    finish("published_steps", {"batches": batches, "networks": found}, given, SOURCES)


if __name__ == "__main__":
    main()
