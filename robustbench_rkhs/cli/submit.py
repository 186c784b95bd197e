"""rkhs-submit: check a submission and put it on the leaderboard."""

from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from robustbench_rkhs.cli.command import AsJson, Names, Weights, command, failure, typed_command, usable_device
from robustbench_rkhs.cli.display import Quiet, shown
from robustbench_rkhs.cli.endings import COMPLETE, code_of
from robustbench_rkhs.cli.screen import console_of_width, ending, told
from robustbench_rkhs.cli.values import Count, Device, Folder
from robustbench_rkhs.nodes.limits import Limits
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.parsing import parse, with_fields


def _submit(
    typed: dict[str, Any],
    /,
    what: Annotated[Literal["checkpoint", "adversarials"], tyro.conf.Positional],
    path: Annotated[Path, tyro.conf.Positional],
    sample: Count = 100,
    device: Device = "auto",
    out: Folder = Path("reports"),
    model: str | None = None,
    weights: Weights = None,
    data: str | None = None,
    limits: Names = (),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Check what a stranger sends and put it on the leaderboard: a checkpoint folder, evaluated on a sample and then in full; or
    adversarial images of a model here, of which those that rkhs-verify confirms count.

    $ rkhs-submit checkpoint path/to/folder --eps 0.5 1.0
    $ rkhs-submit adversarials theirs.npz

    Every field of the evaluation's recipe is a flag of a checkpoint's evaluation. Exit code 2: refused; 3: the evaluation ran out
    of its --budget and nothing was decided: the same command with a larger one goes on from there.

    Args:
        what: What is submitted.
        path: Folder of model.safetensors, config.json and recipe.yaml; never code. Or FILE.npz as --save-adversarials writes it.
        sample: Images of the first look.
        device: auto, cpu, cuda ...
        out: Where verdicts and the leaderboard are.
        model: Of adversarial images: the model, where it is none of checkpoints/.
        weights: Of adversarial images: weights for a recipe or builder.
        data: Of adversarial images: data set or FILE.npz.
        limits: The most that a file may ask for and an evaluation may use, as NAME=VALUE ...: text, header, weights, images, memory
            (bytes, such as 4GiB), depth, entries, tensors, votes, threads, seconds (such as 2h).
        as_json: Print one JSON object on stdout, the steps on stderr.
    """
    from robustbench_rkhs.cli.settings import eval_recipe
    from robustbench_rkhs.submission.gate import Incomplete, submit, submit_adversarials

    named = {"model": model, "weights": weights, "data": data}
    fields = typed if what == "adversarials" else {key: value for key, value in named.items() if value is not None}
    if fields:
        flags = ", ".join("--" + key.replace("_", "-") for key in fields)
        raise UserError(f"{flags}: not for a submission of {what}; see rkhs-submit --help")
    screen, said = console_of_width(140, stderr=as_json), []
    both: dict[str, Any] = {"device": usable_device(device), "out": out, "command": typed_command()}
    both["limits"] = parse(Limits, with_fields({}, ",".join(limits), "--limits"), "--limits")
    if what == "adversarials":
        steps = submit_adversarials(path, model=model, weights=weights, data=data, **both)
    elif "eps" not in typed:
        raise UserError("--eps: expected at least one radius, found none")
    else:
        steps = submit(path, eval_recipe(typed, "rkhs-submit"), sample=sample, **both)
    try:
        with shown(screen, quiet):
            for line in steps:
                told(screen, line)
                said.append(line)
    except Incomplete as early:
        failure(str(early))
        unfinished = {"accepted": False, "complete": False, "incomplete_because": early.because, "reason": str(early)}
        if as_json:
            ending(screen, "submit", {**unfinished, "steps": said}, [], as_json)
        return code_of(False, [early.because])
    if as_json:
        ending(screen, "submit", {"accepted": True, "complete": True, "steps": said}, [], as_json)
    return COMPLETE


main = command(_submit, recipe={"eps": "none"})
