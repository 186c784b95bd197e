"""rkhs-submit: pack a submission, check it, and put it on the leaderboard."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import Field

from robustbench_rkhs.cli.command import AsJson, Names, Weights, command, failure, typed_command, usable_device
from robustbench_rkhs.cli.display import Quiet, shown
from robustbench_rkhs.cli.endings import BAD_INPUT, COMPLETE, OUT_OF_BUDGET, code_of
from robustbench_rkhs.cli.screen import console_of_width, ending, printed, told
from robustbench_rkhs.cli.values import Count, Device, Folder
from robustbench_rkhs.nodes.limits import Limits
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.parsing import parse, with_fields

Drawn = Annotated[int, Field(ge=0, lt=2**63)] | None
PACKING = ("bundle", "pull_request", "key", "verdicts")
OF = {
    "checkpoint": ("sample", "limits", *PACKING),
    "adversarials": ("model", "weights", "data", "limits", *PACKING[:3]),
    "check": ("sample", "limits", "known", "draw", "result"),
    "comment": ("changed",),
}
"""By what is done, the flags that are for it; the fields of a recipe are for `checkpoint` and `check`."""


def _submit(
    typed: dict[str, Any],
    /,
    what: Annotated[Literal["checkpoint", "adversarials", "check", "comment"], tyro.conf.Positional],
    path: Annotated[Path, tyro.conf.Positional],
    sample: Count = 100,
    device: Device = "auto",
    out: Folder = Path("reports"),
    bundle: Path | None = None,
    pull_request: Path | None = None,
    key: Path | None = None,
    verdicts: Path | None = None,
    known: Path | None = None,
    draw: Drawn = None,
    result: Path | None = None,
    changed: Path | None = None,
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
    $ rkhs-submit checkpoint path/to/folder --bundle mine
    $ rkhs-submit check mine

    With --bundle nothing is submitted: the folder that is written is the content of a pull request. check evaluates a bundle, or
    each new one in a folder, and publishes nothing; checkpoint and adversarials take a bundle, too, and publish it. Every field of
    the evaluation's recipe is a flag of a checkpoint's evaluation. Exit code 2: refused; 3: the evaluation ran out of its --budget
    and nothing was decided: the same command with a larger one goes on from there.

    Args:
        what: What is submitted; or check, of a bundle; or comment, of a file of check --result.
        path: Folder of model.safetensors, config.json and recipe.yaml; never code. Or FILE.npz as --save-adversarials writes it. Or
            a bundle.
        sample: Images of the first look, which the gate draws.
        device: auto, cpu, cuda ...
        out: Where verdicts and the leaderboard are.
        bundle: Write a bundle to this new folder, with your own table from OUT/verdicts.
        pull_request: With --bundle: the clone of a repository on GitHub, to which git and gh send it as a pull request.
        key: With --bundle: your secret key, made where it is missing, with a line that says so. A name belongs to the key that it
            was first sent with: whoever loses the key loses the name. Default: ~/.config/robustbench_rkhs/sender.pem.
        verdicts: With --bundle: your own table of the checkpoint, rather than the strongest in OUT/verdicts.
        known: Of check: the folder of bundles that are known; those in it, file by file, are not checked again, and adversarial
            images may be of their models.
        draw: Of check: the seed that draws the sample, as a result states it; default: drawn.
        result: Of check: write the results to this file, as JSON.
        changed: Of comment: a file with the paths that the pull request changes, one a line.
        model: Of adversarial images: the model, where it is none of checkpoints/.
        weights: Of adversarial images: weights for a recipe or builder.
        data: Of adversarial images: data set or FILE.npz.
        limits: The most that a file may ask for and an evaluation may use, as NAME=VALUE ...: text, header, weights, images, memory
            (bytes, such as 4GiB), depth, entries, tensors, votes, threads, seconds (such as 2h).
        as_json: Print one JSON object on stdout, the steps on stderr.
    """
    flags: dict[str, Any] = {
        "bundle": bundle,
        "pull_request": pull_request,
        "key": key,
        "verdicts": verdicts,
        "known": known,
        "draw": draw,
    }
    flags |= {"result": result, "changed": changed, "model": model, "weights": weights, "data": data}
    wrong = [name for name, value in flags.items() if value is not None and name not in OF[what]]
    if wrong := [*wrong, *(typed if what in ("adversarials", "comment") or bundle else ())]:
        listed = ", ".join("--" + name.replace("_", "-") for name in wrong)
        raise UserError(f"{listed}: not for a submission of {what}{' with --bundle' if bundle else ''}; see rkhs-submit --help")
    if what == "comment":
        return _comment(path, changed, as_json)
    both: dict[str, Any] = {"device": usable_device(device), "out": out, "command": typed_command()}
    both["limits"] = parse(Limits, with_fields({}, ",".join(limits), "--limits"), "--limits")
    screen = console_of_width(140, stderr=as_json)
    named = {"model": model, "weights": weights, "data": data}
    if bundle is None and (pull_request or key or verdicts):
        raise UserError("--pull-request, --key and --verdicts are for a bundle: expected --bundle, too")
    if bundle is not None:
        return _packed(path, bundle, pull_request, key, verdicts, named if what == "adversarials" else None, screen, both, as_json)
    if what == "check":
        return _checked(path, known, draw, result, sample, typed, screen, both, as_json, quiet)
    return _submitted(_steps(what, path, typed, sample, named, both), screen, as_json, quiet)


def _steps(what: str, path: Path, typed: dict[str, Any], sample: int, named: dict[str, Any], both: dict[str, Any]) -> Iterator[str]:
    """The steps of a submission. Raises UserError."""
    from robustbench_rkhs.cli.settings import eval_recipe, method_fields
    from robustbench_rkhs.submission.bundle_check import submit_bundle
    from robustbench_rkhs.submission.bundle_names import is_bundle
    from robustbench_rkhs.submission.gate import submit, submit_adversarials

    if is_bundle(path):
        return submit_bundle(path, sample=sample, settings=method_fields(typed), **both)
    if what == "adversarials":
        return submit_adversarials(path, **named, **both)
    if "eps" not in typed:
        raise UserError("--eps: expected at least one radius, found none")
    return submit(path, eval_recipe(typed, "rkhs-submit"), sample=sample, **both)


def _submitted(steps: Iterator[str], screen: Any, as_json: bool, quiet: bool) -> int:
    """Take the steps of a submission and tell how it ended."""
    from robustbench_rkhs.submission.gate import Incomplete

    said = list[str]()
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


def _packed(
    path: Path,
    bundle: Path,
    pull_request: Path | None,
    key: Path | None,
    table: Path | None,
    named: dict[str, Any] | None,
    screen: Any,
    both: dict[str, Any],
    as_json: bool,
) -> int:
    """Write a bundle, of adversarial images where `named` says of which model, and open a pull request where asked."""
    from robustbench_rkhs.submission.packing import pack_adversarials, pack_checkpoint
    from robustbench_rkhs.submission.pull_request import open_pull_request

    given: dict[str, Any] = {"out": both["out"], "key": key, "tell": lambda line: told(screen, line)}
    if named is None:
        found = pack_checkpoint(path, bundle, table=table, **given)
    else:
        found = pack_adversarials(path, bundle, **named, device=both["device"], command=both["command"], **given)
    files = [bundle / "submission.yaml", *(bundle / name for name in sorted(found.stated.files))]
    told(screen, f"bundle: {found.stated.kind} {found.stated.name}, signed by {found.sender[:12]}: {bundle}")
    address = open_pull_request(bundle, pull_request) if pull_request else ""
    if address:
        told(screen, f"pull request: {address}")
    if as_json:
        ending(screen, "files", {"bundle": str(bundle), "sender": found.sender, "pull_request": address or None}, files, as_json)
    return COMPLETE


def _checked(
    path: Path,
    known: Path | None,
    draw: int | None,
    result: Path | None,
    sample: int,
    typed: dict[str, Any],
    screen: Any,
    both: dict[str, Any],
    as_json: bool,
    quiet: bool,
) -> int:
    """Check bundles and tell the results."""
    from robustbench_rkhs.cli.settings import method_fields
    from robustbench_rkhs.runtime.files import write_text
    from robustbench_rkhs.submission.bundle_check import check_bundle, new_bundles

    settings, results = method_fields(typed), []
    for one in new_bundles(path, known):
        with shown(screen, quiet):
            found = check_bundle(
                one, lambda line: told(screen, line), seed=draw, sample=sample, settings=settings, known=known, **both
            )
        if found.accepted is not True:
            failure(f"{found.name or one} is {'refused' if found.accepted is False else 'undecided'}: {found.reason}")
            told(screen, f"the same again: {found.command}")
        results.append(found)
    if not results:
        told(screen, f"no new bundle in {path}")
    plain = {"results": [one.model_dump(mode="json") for one in results]}
    if result is not None:
        write_text(result, json.dumps(plain, indent=1) + "\n")
    if as_json:
        ending(screen, "check", plain, [result] if result else [], as_json)
    verdicts = {one.accepted for one in results}
    return BAD_INPUT if False in verdicts else OUT_OF_BUDGET if None in verdicts else COMPLETE


def _comment(path: Path, changed: Path | None, as_json: bool) -> int:
    """Print the comment on a pull request."""
    from robustbench_rkhs.nodes.documents import read_text
    from robustbench_rkhs.submission.comment import comment, read_results

    text = comment(read_results(path), read_text(changed).splitlines() if changed else None)
    if as_json:
        ending(console_of_width(140, stderr=True), "comment", {"comment": text}, [], as_json)
    else:
        printed(text)
    return COMPLETE


main = command(_submit, recipe={"eps": "none"})
