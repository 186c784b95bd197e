"""How much of its Lipschitz bound does each layer family use? The square wave, at gamma 1, 5 and 10.

    python benchmarks/square_wave.py            # four families (and more), three bounds, three seeds
    python benchmarks/square_wave.py --quick    # one run

Each network is trained to fit the wave; its bound gamma holds whatever the weights. In one dimension the empirical Lipschitz
constant is read off a fine grid (400,001 points of [-2.5, 2.5]): the largest slope, a lower bound. Tightness is their ratio.
The published table (Wang & Manchester, ICML 2023, Table 1) stands beside ours. Writes reports/square_wave/.
"""

import json
import statistics
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import ROOT, arguments, finish

from robustbench_rkhs.bounds import upper
from robustbench_rkhs.layers.frozen import freeze
from robustbench_rkhs.reports.fits import Fit, draw_fits
from robustbench_rkhs.training.checkpoint import load
from robustbench_rkhs.training.loop import train
from robustbench_rkhs.training.recipe import TrainRecipe

PUBLISHED = {
    "aol": {1: 77.2, 5: 45.2, 10: 47.9},
    "orthogonal": {1: 74.1, 5: 72.8, 10: 64.5},
    "sll": {1: 99.9, 5: 90.5, 10: 67.9},
    "sandwich": {1: 99.9, 5: 99.3, 10: 94.0},
}
"""Tightness in percent."""
HIDDEN = {"sandwich": [86] * 9, "sll": [128] * 8}
"""As published: 127 to 133 thousand parameters each; the others have nine layers of 128."""


def recipe(family: str, gamma: float, seed: int, epochs: int, **fields: str) -> TrainRecipe:
    """`fields`: further fields of the network."""
    stored = {
        "about": f"{family} layers on the square wave, gamma {gamma:g}",
        "data": {"name": "square_wave"},
        "network": {
            "name": "lipschitz_bounded",
            "family": family,
            "hidden": HIDDEN.get(family, [128] * 9),
            "lipschitz": gamma,
            **fields,
        },
        "loss": {"name": "squared_error"},
        "optimizer": {"name": "adam", "lr": 0.01},
        "schedule": {"name": "triangular"},
        "epochs": epochs,
        "batch_size": 50,
        "seed": seed,
    }
    return TrainRecipe.parse(stored, f"{family}, gamma {gamma:g}")


def slope(model: torch.nn.Module) -> float:
    """Largest slope between neighbours of the grid, in float64."""
    x = torch.linspace(-2.5, 2.5, 400_001, dtype=torch.float64)[:, None]
    with torch.no_grad():
        y = torch.cat([model(part) for part in x.split(20_000)])
    return ((y[1:] - y[:-1]).norm(dim=1) / (x[1:] - x[:-1])[:, 0]).max().item()


def main() -> None:
    given = arguments(__doc__)
    families, gammas, seeds, epochs = list(PUBLISHED), [1.0, 5.0, 10.0], [0, 1, 2], 200
    if given.quick:
        families, gammas, seeds, epochs = families[:1], gammas[:1], seeds[:1], 20
    out = ROOT / "reports" / ("square_wave-quick" if given.quick else "square_wave")
    rows: list[dict[str, Any]] = []
    fits: list[Fit] = []
    for family in families:
        for gamma in gammas:
            for seed in seeds:
                folder = out / "runs" / f"{family}-{gamma:g}-{seed}"
                one = recipe(family, gamma, seed, epochs)
                if not (folder / "config.json").is_file():
                    train(one, folder, device=given.device, command="benchmarks/square_wave.py")
                loaded = load(folder)
                test = one.data.test()
                model = freeze(loaded.model.double())
                bound = upper(loaded.model, test.shape).value
                steepest = slope(model)
                assert steepest <= bound * (1 + 1e-6), f"UNSOUND: slope {steepest} above the bound {bound}"
                x = torch.linspace(-2, 2, 801, dtype=torch.float64)[:, None]
                with torch.no_grad():
                    error = (model(test.x.double()) - test.y.double()).square().mean().item()
                    fits.append(Fit(family, f"bound gamma = {gamma:g}", model(x)[:, 0].numpy(), steepest))
                rows.append(
                    {
                        "family": family,
                        "gamma": gamma,
                        "seed": seed,
                        "empirical_lipschitz": steepest,
                        "proven_bound": bound,
                        "tightness": 100 * steepest / gamma,
                        "test_squared_error": error,
                        "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
                        "weights": loaded.weights,
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
    table = pd.DataFrame(rows)
    table.to_csv(out / "runs.csv", index=False)
    lines = ["# How much of the bound gamma each family uses (%)", ""]
    lines += ["Mean over seeds 0, 1, 2 (smallest to largest); published value after the slash.", ""]
    lines += ["| family | " + " | ".join(f"gamma {gamma:g}" for gamma in gammas) + " |", "|---|" + "---|" * len(gammas)]
    figures: dict[str, float] = {}
    for family in families:
        cells = []
        for gamma in gammas:
            some = table[(table["family"] == family) & (table["gamma"] == gamma)]["tightness"]
            figures[f"{family}_{gamma:g}"] = statistics.mean(some)
            cells.append(f"{some.mean():.1f} ({some.min():.1f} to {some.max():.1f}) / {PUBLISHED[family][int(gamma)]}")
        lines.append(f"| {family} | " + " | ".join(cells) + " |")
    digest = recipe(families[0], 1.0, 0, epochs).data.test().digest
    lines += ["", f"`python benchmarks/square_wave.py`, test data {digest[:12]}; see reports/benchmarks/square_wave.json"]
    (out / "table.md").write_text("\n".join(lines) + "\n")
    grid = np.linspace(-2, 2, 801)
    wave = ((grid <= -1) | ((grid > 0) & (grid <= 1))).astype(float)
    draw_fits(grid, wave, fits, out / "fits", "python benchmarks/square_wave.py")
    finish("square_wave", figures, given, ["benchmarks/square_wave.py", "robustbench_rkhs/networks/lipschitz_bounded.py"])


if __name__ == "__main__":
    main()
