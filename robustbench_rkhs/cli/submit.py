"""rkhs-submit: what a stranger sends, checked and put on the leaderboard."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from robustbench_rkhs.cli.command import Names, command, typed_command, usable_device
from robustbench_rkhs.cli.number import number
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.threat_model import Norm


def _submit(
    what: Annotated[Literal["checkpoint", "adversarials"], tyro.conf.Positional],
    path: Annotated[Path, tyro.conf.Positional],
    eps: Names = (),
    norm: Norm = "l2",
    attack: Names = (),
    sample: int = 100,
    samples: int | None = None,
    device: str = "auto",
    out: Path = Path("reports"),
    model: str | None = None,
    weights: str | None = None,
    data: str | None = None,
) -> None:
    """Check what a stranger sends and put it on the leaderboard: a checkpoint folder, evaluated on a sample and then in full; or
    adversarial images of a model here, of which those that rkhs-verify confirms count.

    $ rkhs-submit checkpoint path/to/folder --eps 0.5 1.0
    $ rkhs-submit adversarials theirs.npz

    Args:
        what: What is submitted.
        path: Folder of model.safetensors, config.json and recipe.yaml; never code. Or FILE.npz as --save-adversarials writes it.
        eps: Radii, in pixels of [0, 1].
        norm: Distance they are measured in.
        attack: As for rkhs-eval.
        sample: Images of the first look.
        samples: Images of the full evaluation; all where not given.
        device: auto, cpu, cuda ...
        out: Where verdicts and the leaderboard are.
        model: Of adversarial images: the model, where it is none of checkpoints/.
        weights: Of adversarial images: weights for a recipe or builder.
        data: Of adversarial images: data set or FILE.npz.
    """
    from robustbench_rkhs.evaluation.recipe import EvalRecipe, attack_from
    from robustbench_rkhs.nodes.parsing import parse
    from robustbench_rkhs.submission.gate import submit as run
    from robustbench_rkhs.submission.gate import submit_adversarials

    if what == "adversarials":
        named = {"model": model, "weights": weights, "data": data}
        for line in submit_adversarials(path, **named, device=usable_device(device), out=out, command=typed_command()):
            print(line)
        return
    if not eps:
        raise UserError("--eps: expected at least one radius, found none")
    settings = {
        "norm": norm,
        "eps": [number(text) for text in eps],
        "attacks": [attack_from(text) for text in attack],
        "samples": samples,
        "block": 64,
    }
    recipe = parse(EvalRecipe, settings, "rkhs-submit")
    for line in run(path, recipe, sample=sample, device=usable_device(device), out=out, command=typed_command(), say=print):
        print(line)


main = command(_submit)
