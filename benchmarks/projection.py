"""Cost and error of the spectral projection, at the published recipe's batch size, tau in force = tau.

    python benchmarks/projection.py            # 200 steps, then 20 measured ones
    python benchmarks/projection.py --quick    # a sample

Real training steps of robust_vgg (5 PGD passes, batch 128, float32) from the shipped weights. In every measured step our
projection is timed as a share of the whole step; the weights as they were before it are then clipped exactly, by float64
singular value decomposition (the peer, timed too), and compared. Data: CIFAR-10 from the data root.
"""

import statistics
import time
from itertools import cycle, islice

import torch
from common import arguments, finish, wait

from robustbench_rkhs.lipschitz.reshaped import as_matrix, weighted
from robustbench_rkhs.nodes.paths import checkpoints_folder
from robustbench_rkhs.training import checkpoint
from robustbench_rkhs.training.projections import SpectralProjection
from robustbench_rkhs.training.recipe import TrainRecipe
from robustbench_rkhs.training.run import Run


class Timed:
    """A projection with a clock, which can keep what it was given."""

    def __init__(self, projection: SpectralProjection, device: str) -> None:
        self.projection, self.device, self.seconds, self.keep = projection, device, 0.0, False
        self.before: list[torch.Tensor] = []

    def tau_at(self, epoch: float) -> float:
        return self.projection.tau_at(epoch)

    def __call__(self, model: torch.nn.Module, epoch: float) -> None:
        if self.keep:
            self.before = [as_matrix(m.weight.data).clone() for m in weighted(model)]
        wait(self.device)
        started = time.perf_counter()
        self.projection(model, epoch)
        wait(self.device)
        self.seconds = time.perf_counter() - started


def main() -> None:
    given = arguments(__doc__)
    warm, measured = (2, 5) if given.quick else (200, 20)
    recipe = TrainRecipe.read(
        "robust_vgg_published", {"projections.0.kappa": "null", "data.train": "12800", "epochs": "100", "ema": "null"}
    )
    splits = recipe.data.load()
    run = Run(recipe, splits.test, given.device)
    shipped = checkpoints_folder() / "robust_vgg"
    start = "seeded initial weights"
    if (shipped / "config.json").is_file():
        loaded = checkpoint.load(shipped)
        run.model.load_state_dict(loaded.model.state_dict())
        start = f"checkpoints/robust_vgg, {loaded.weights[:12]}"
    train = splits.train.to(given.device)
    timed = Timed(run.projections[0], given.device)
    tau = timed.tau_at(0)
    run.projections = [timed]  # type: ignore[list-item]
    steps, projections, peers, errors, above = [], [], [], [], []
    batches = cycle(list(run.batches(train)))
    for number, (step, x, y, keys) in enumerate(islice(batches, warm + measured)):
        timed.keep = number >= warm
        wait(given.device)
        started = time.perf_counter()
        run.step(step, x, y, keys)
        wait(given.device)
        took = time.perf_counter() - started
        if number < warm:
            continue
        steps.append(took)
        projections.append(timed.seconds)
        started, exact, over = time.perf_counter(), [], 0
        for matrix in timed.before:
            left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
            over += int((values > tau).sum())
            exact.append(left * values.clamp_max(tau) @ right)
        wait(given.device)
        peers.append(time.perf_counter() - started)
        above.append(over)
        ours = [as_matrix(m.weight.data) for m in weighted(run.model)]
        errors.append(max((a - b).abs().max().item() for a, b in zip(ours, exact, strict=True)))
    share = sum(projections) / sum(steps)
    figures = {
        "projection_share_of_step": share,
        "projection_error": max(errors),
        "projection_seconds": statistics.median(projections),
        "step_seconds": statistics.median(steps),
        "exact_clipping_seconds": statistics.median(peers),
        "times_faster_than_exact": statistics.median(p / o for p, o in zip(peers, projections, strict=True)),
        "singular_values_above_tau": statistics.median(above),
        "tau": tau,
        "steps_before": warm,
        "steps_measured": measured,
        "start": start,
        "data_digest": train.digest,
        "seed": recipe.seed,
    }
    sources = [
        "benchmarks/projection.py",
        "robustbench_rkhs/training/projections.py",
        "robustbench_rkhs/training/loop.py",
        "robustbench_rkhs/training/run.py",
    ]
    finish("projection", figures, given, [*sources, "robustbench_rkhs/attacks/pgd.py"])


if __name__ == "__main__":
    main()
