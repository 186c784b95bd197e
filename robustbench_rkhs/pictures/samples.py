"""Samples of the variational autoencoder beside the images it was trained on."""

from pathlib import Path
from typing import Any

import torch

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.overrides import override
from robustbench_rkhs.nodes.parsing import parse
from robustbench_rkhs.reports.sheet import sheet
from robustbench_rkhs.training.samplers.vae import VAESampler
from robustbench_rkhs.zoo import named_data


def vae_picture(data: str, out: Path, images: int = 4, seed: int = 0, fields: str = "") -> list[Path]:
    """OUT/vae-DATA.*: `images` rows of training images on the left and of samples on the right.

    `fields`: `field=value,...` of the sampler, such as `kind=convolutional,iterations=2000`. Raises UserError where it has no
    such field, or the data are not images.
    """
    if images < 1:
        raise UserError(f"expected at least one row of images, found {images}")
    stored: dict[str, Any] = {}
    for pair in fields.split(",") if fields else []:
        field, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--vae: expected field=value, found {pair!r}")
        override(stored, field.strip(), value)
    sampler: VAESampler = parse(VAESampler, stored, "--vae")
    split = named_data(data).load().train
    if len(split.shape) != 3:
        raise UserError(f"data set {split.data!r} has inputs of shape {split.shape}, expected images")
    columns = 6
    shown = split.sample(min(images * columns, len(split)), seed).x
    drawn = sampler.prepare(split, seed)(torch.arange(images * columns), 1)
    left, right = (x.new_ones(images * columns, *split.shape) for x in (shown, drawn))
    left[: len(shown)], right[: len(drawn)] = shown, drawn
    rows = [torch.cat([a, a.new_ones(1, *split.shape), b]) for a, b in zip(left.split(columns), right.split(columns), strict=True)]
    told = f"{split.data}, seed {seed}: training images (left), samples of the {sampler.kind} VAE (right)"
    detail = f"{sampler.iterations} steps, {sampler.latent} latent numbers, spread {sampler.spread}"
    return sheet(torch.cat(rows).numpy(), images, 2 * columns + 1, f"{told}\n{detail}", out / f"vae-{split.data}")
