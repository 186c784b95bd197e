"""rkhs-pictures: figures of methods and training runs."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from robustbench_rkhs.cli.command import Names, command, typed_command
from robustbench_rkhs.cli.screen import printed
from robustbench_rkhs.cli.values import Count, Folder
from robustbench_rkhs.nodes.node import Seed
from robustbench_rkhs.nodes.threat_model import Norm

LOCAL = Path("reports/local/pictures")
"""Where pictures go, which git ignores, if no folder is named."""


def _pictures(
    kind: Annotated[Literal["deformations", "learning", "curves", "square_wave", "vae"], tyro.conf.Positional],
    model: Names = (),
    data: str = "digits",
    out: Folder = LOCAL,
    name: str | None = None,
    images: Count = 4,
    seed: Seed = 0,
    band: Literal["range", "interval"] = "range",
    norm: Norm = "l2",
    verdicts: Path = Path("reports/verdicts"),
    vae: str = "",
) -> None:
    """Draw figures of methods and training runs: OUT/KIND-NAME.png, .pdf and .svg.

    $ rkhs-pictures deformations --data mnist
    $ rkhs-pictures learning --model digits_mlp 'plain=sweeps/mine/trials/0000/*'
    $ rkhs-pictures curves --model 'digits_*' --band interval
    $ rkhs-pictures square_wave --model 'reports/square_wave/runs/*'
    $ rkhs-pictures vae --data mnist --vae kind=convolutional,iterations=2000

    Runs of one recipe that differ only in the seed are drawn as one curve; LABEL=GLOB makes a separate group.

    Args:
        kind: deformations: test images, deformed. learning: loss and validation by epoch. curves: accuracy by eps over seeds.
            square_wave: networks' fits. vae: samples beside data.
        model: Names in checkpoints/, folders or globs; for curves, names of models in VERDICTS. Each plain or as LABEL=GLOB.
        data: Data set or FILE.npz.
        out: Folder for the pictures.
        name: End of the file names; default: made of the labels.
        images: Rows of the sheet.
        seed: Seed of the choice of images and of all random numbers.
        band: For curves over seeds: smallest to largest, or the 95% interval of the mean.
        norm: For curves: norm of the verdicts.
        verdicts: For curves: folder of the verdicts.
        vae: Fields of the VAE sampler, field=value,...; see rkhs-list samplers vae.
    """
    from robustbench_rkhs import pictures as draw
    from robustbench_rkhs.runtime.ignored import ignored

    if out == LOCAL:
        ignored(out.parent)
    if kind == "deformations":
        paths = draw.deformations_picture(data, out, images, seed)
    elif kind == "learning":
        paths = draw.learning_picture(model, out, name, band, typed_command())
    elif kind == "curves":
        paths = draw.curves_picture(model, out, name, band, verdicts, norm, typed_command())
    elif kind == "square_wave":
        paths = draw.square_wave_picture(model, out, name, typed_command())
    else:
        paths = draw.vae_picture(data, out, images, seed, vae)
    printed(f"pictures: {' '.join(str(path) for path in paths)}")


main = command(_pictures)
