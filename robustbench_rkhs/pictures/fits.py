"""The square wave and the fits of trained networks."""

from collections.abc import Sequence
from pathlib import Path

import torch

from robustbench_rkhs.data.square_wave import square_wave
from robustbench_rkhs.layers.frozen import freeze
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.pictures.groups import folders, stem
from robustbench_rkhs.reports.fits import Fit, draw_fits
from robustbench_rkhs.training.checkpoint import load

POINTS = 8001
"""Points of the grid on [-2, 2]."""


def square_wave_picture(models: Sequence[str], out: Path, name: str | None = None, note: str = "") -> list[Path]:
    """OUT/square_wave-NAME.*: one panel per Lipschitz bound in the recipes, one colour per group of networks.

    A label typed before a glob names the group; else the layer family or the network's class does. Raises UserError where a
    checkpoint is missing or does not map one number to one number.
    """
    x = torch.linspace(-2, 2, POINTS, dtype=torch.float64)[:, None]
    fits = []
    for label, folder in folders(models, "config.json"):
        loaded = load(folder)
        if tuple(loaded.config["shape"]) != (1,) or loaded.config["classes"] != 1:
            takes = f"{tuple(loaded.config['shape'])} to {loaded.config['classes']}"
            raise UserError(f"{folder}: expected a network of one number, as trained on square_wave, found {takes}")
        network = loaded.recipe.network
        bound = getattr(network, "lipschitz", None)
        with torch.no_grad():
            y = freeze(loaded.model.double())(x)[:, 0]
        slope = ((y[1:] - y[:-1]) / (x[1:, 0] - x[:-1, 0])).abs().max().item()
        group = label or getattr(network, "family", None) or network.label
        panel = "no bound" if bound is None else f"bound gamma = {bound:g}"
        fits.append(Fit(group, panel, y.numpy(), slope))
    groups = list(dict.fromkeys(fit.group for fit in fits))
    return draw_fits(x[:, 0].numpy(), square_wave(x[:, 0].numpy()), fits, stem(out, "square_wave", name, groups), note)
