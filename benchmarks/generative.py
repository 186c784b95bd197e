"""Small generative models of MNIST, whose critics are held small by the package's penalties, beside WGAN-GP's.

    python benchmarks/generative.py                              # all critics, one core; goes on where it was stopped
    python benchmarks/generative.py --critics wgan_gp gradient --seeds 0 1
    python benchmarks/generative.py --quick                      # 20 iterations each

The recipe is models/generative/mnist_critics.yaml. A critic f learns to tell real from generated digits: by the hinge loss with
penalties of the package, taken as they are at the real and generated images of the batch (f has one output, so the gradient
penalty is the largest squared gradient norm among them), or as WGAN-GP (linear loss, (|grad f| - 1)^2 at points between). The
generator raises f. Both are perceptrons (64-128-256-784 with BatchNorm, 784-256-128-1), which CPU minutes train. Measured by the
Frechet distance of 10,000 generated to the 10,000 test digits in the 64 hidden features of our own network, trained first
(models/mnist_features.yaml), and by the share of the rarest of the ten digits that this network recognises. The same distance of
as many training digits is the floor.

Each training is kept in OUT/runs and goes on after a stop; OUT/results.json, OUT/table.md and OUT/samples.png come from them.
"""

import argparse
import json
import shlex
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from common import ROOT, machine
from frechet import frechet, measured
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from robustbench_rkhs.data import Split
from robustbench_rkhs.nodes.node import Node, Real
from robustbench_rkhs.nodes.parsing import parse
from robustbench_rkhs.nodes.paths import find_recipe
from robustbench_rkhs.reports.sheet import sheet
from robustbench_rkhs.runtime.counter_rng import mix
from robustbench_rkhs.runtime.files import write_text
from robustbench_rkhs.training.checkpoint import load
from robustbench_rkhs.training.loop import train
from robustbench_rkhs.training.penalties import Penalty
from robustbench_rkhs.training.recipe import TrainRecipe

RECIPE = ROOT / "models/generative/mnist_critics.yaml"
LATENT, BATCH, CRITIC_STEPS, LR, BETAS, SAVE_EVERY = 64, 64, 2, 5e-4, (0.5, 0.9), 250


class Critic(Node):
    """How a critic is trained."""

    loss: Literal["hinge", "linear"] = "hinge"
    """mean max(0, 1 - f(real)) + max(0, 1 + f(generated)), or mean f(generated) - f(real)."""
    penalties: tuple[Penalty, ...] = ()
    """Penalties of the package."""
    interpolated: Real = Field(0.0, ge=0)
    """Weight of WGAN-GP's penalty."""

    def __call__(self, model: nn.Module, real: Tensor, fake: Tensor, chance: torch.Generator, penalties: list[Any]) -> Tensor:
        of_real, of_fake = model(real), model(fake)
        loss = of_fake.mean() - of_real.mean()
        if self.loss == "hinge":
            loss = functional.relu(1 - of_real).mean() + functional.relu(1 + of_fake).mean()
        both = torch.cat([real, fake])
        for penalty in penalties:
            loss = loss + penalty(model, both, torch.zeros(len(both), dtype=torch.int64))
        if self.interpolated:
            share = torch.rand(len(real), 1, 1, 1, generator=chance)
            between = (share * real + (1 - share) * fake).requires_grad_()
            (gradient,) = torch.autograd.grad(model(between).sum(), between, create_graph=True)
            loss = loss + self.interpolated * (gradient.flatten(1).norm(dim=1) - 1).square().mean()
        return loss


class Generative(Node):
    """The recipe: which network measures, steps of the generator (each after two of the critic), and the critics by name."""

    about: str
    features: str
    iterations: int = Field(3000, ge=1)
    critics: dict[str, Critic]


def networks(seed: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Generator and critic."""
    torch.manual_seed(seed)
    generator = nn.Sequential(
        *(nn.Linear(LATENT, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 256), nn.BatchNorm1d(256), nn.ReLU()),
        *(nn.Linear(256, 784), nn.Sigmoid(), nn.Unflatten(1, (1, 28, 28))),
    )
    critic = nn.Sequential(
        *(nn.Flatten(), nn.Linear(784, 256), nn.LeakyReLU(0.2), nn.Linear(256, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1)),
    )
    return generator, critic


def trained(critic: Critic, real: Split, seed: int, iterations: int, path: Path) -> tuple[nn.Module, float]:
    """The generator after all iterations, and its CPU seconds; from where the file ends."""
    generator, model = networks(seed)
    optimizers = [torch.optim.Adam(part.parameters(), lr=LR, betas=BETAS, fused=True) for part in (generator, model)]
    penalties = [penalty.prepare(model, real, seed) for penalty in critic.penalties]
    done, spent = 0, 0.0
    if path.is_file():
        state = torch.load(path, weights_only=True)
        for part, kept in zip([generator, model, *optimizers], state["parts"], strict=True):
            part.load_state_dict(kept)
        for penalty, kept in zip(penalties, state["penalties"], strict=True):
            penalty.restore(kept)
        done, spent = state["done"], state["seconds"]
        assert done <= iterations, f"{path} has {done} iterations already, more than the {iterations} that were asked for"
    started = time.process_time() - spent
    for iteration in range(done, iterations):
        chance = torch.Generator().manual_seed(mix(seed, iteration))
        for _ in range(CRITIC_STEPS):
            batch = real.x[torch.randint(len(real), (BATCH,), generator=chance)]
            with torch.no_grad():
                fake = generator(torch.randn(BATCH, LATENT, generator=chance))
            optimizers[1].zero_grad()
            critic(model, batch, fake, chance, penalties).backward()
            optimizers[1].step()
        optimizers[0].zero_grad()
        (-model(generator(torch.randn(BATCH, LATENT, generator=chance))).mean()).backward()
        optimizers[0].step()
        if (iteration + 1) % SAVE_EVERY == 0 or iteration + 1 == iterations:
            state = {"parts": [part.state_dict() for part in (generator, model, *optimizers)], "done": iteration + 1}
            state |= {"penalties": [penalty.state() for penalty in penalties], "seconds": time.process_time() - started}
            torch.save(state, path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
    return generator.eval(), time.process_time() - started


@torch.no_grad()
def drawn(generator: nn.Module, count: int) -> Tensor:
    """Generated digits, the same latent vectors for every generator."""
    latent = torch.randn(count, LATENT, generator=torch.Generator().manual_seed(2026))
    return torch.cat([generator(part) for part in latent.split(500)])


def main() -> None:
    recipe = parse(Generative, yaml.safe_load(RECIPE.read_text()), RECIPE.name)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 iterations each, one epoch of the features; writes to OUT-quick/")
    parser.add_argument("--critics", nargs="+", choices=recipe.critics, default=[*recipe.critics], metavar="CRITIC")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--iterations", type=int, default=recipe.iterations)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "generative")
    given = parser.parse_args()
    measuring = TrainRecipe.read(find_recipe(recipe.features))
    if given.quick:
        given.iterations, given.out = 20, given.out.with_name(f"{given.out.name}-quick")
        measuring = TrainRecipe.parse(measuring.model_dump(mode="json") | {"epochs": 1})
    torch.set_num_threads(given.threads)
    measure = given.out / "runs" / recipe.features
    if not (measure / "config.json").is_file():  # which says finished
        train(measuring, measure, threads=given.threads)
    network, splits = load(measure).model.eval(), measuring.data.load()
    test, _ = measured(network, splits.test.x)
    count, shown = len(test), [splits.test.x[:10]]
    rows: list[dict[str, Any]] = [
        {"critic": "training digits", "frechet": frechet(measured(network, splits.train.x[:count])[0], test)}
    ]
    for name in given.critics:
        for seed in given.seeds:
            path = given.out / "runs" / f"{name}-{seed}.pt"
            generator, seconds = trained(recipe.critics[name], splits.train, seed, given.iterations, path)
            images = drawn(generator, count)
            features, digits = measured(network, images)
            rarest = int(torch.bincount(digits, minlength=10).min()) / count
            rows.append(
                {"critic": name, "seed": seed, "frechet": frechet(features, test), "rarest": rarest, "cpu_seconds": seconds}
            )
            print(json.dumps(rows[-1]), flush=True)
            shown += [images[:20]] if seed == given.seeds[0] else []
    save(given, rows, shown, splits.test)


def save(given: argparse.Namespace, rows: list[dict[str, Any]], shown: list[Tensor], test: Split) -> None:
    """The table, the results and the figure."""
    first = [row for row in rows if row.get("seed", given.seeds[0]) == given.seeds[0]]
    labels = [f"{row['critic']} {row['frechet']:.1f}" for row in first]
    marks = ["", "test", *[""] * 8] + [text for label in labels[1:] for text in ("", label, *[""] * 18)]
    title = f"MNIST, {given.iterations} steps: two rows a critic, Frechet distance (training digits {rows[0]['frechet']:.1f})"
    sheet(torch.cat(shown).numpy(), 2 * len(shown) - 1, 10, title, given.out / "samples", marks)
    about = {"command": shlex.join(["python", *sys.argv]), "date": date.today().isoformat(), "machine": machine("cpu")}
    about |= {"torch": torch.__version__, "test": test.digest, "iterations": given.iterations}
    write_text(given.out / "results.json", json.dumps(about | {"rows": rows}, indent=2) + "\n")
    lines = ["| critic | seed | Frechet distance | rarest digit | CPU s |", "|---|---|---|---|---|"]
    for row in rows:
        rest = f"{row['rarest']:.1%} | {row['cpu_seconds']:.0f}" if "seed" in row else " | "
        lines.append(f"| {row['critic']} | {row.get('seed', '')} | {row['frechet']:.2f} | {rest} |")
    page = ["# Generated digits", "", (__doc__ or "").split("\n\n")[2].replace("\n", " "), "", *lines, "", f"`{about['command']}`"]
    page[-1] += f", {about['machine']}, {about['date']}, {given.iterations} iterations, MNIST test {test.digest[:16]}."
    write_text(given.out / "table.md", "\n".join(page) + "\n")


if __name__ == "__main__":
    main()
