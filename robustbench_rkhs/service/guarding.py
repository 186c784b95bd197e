"""Checks an upload in a process of its own, before anything of it is kept: `python -m robustbench_rkhs.service.guarding`.

Only files that a submission may hold, of allowed sizes, whose headers and recipe can be read within the limits; no code.
"""

import json
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.parsing import parse
from robustbench_rkhs.runtime.children import confine, end_with, messages
from robustbench_rkhs.service.bundles import Bundle
from robustbench_rkhs.service.settings import Settings
from robustbench_rkhs.submission.bundle_names import check_bundle, check_checkpoint

if TYPE_CHECKING:
    from robustbench_rkhs.nodes.limits import Limits

Guard = Callable[[Bundle, Settings], Bundle]
"""The upload, once it passed, a bundle as what it holds. Raises UserError with the reason where it is refused."""
SECONDS = 300.0
"""The longest that a check may take."""


AT_ONCE = 2
"""Uploads that are unpacked or checked at the same time."""
TURN = threading.BoundedSemaphore(AT_ONCE)


def guard(bundle: Bundle, settings: Settings) -> Bundle:
    """Check an upload, and say what a bundle holds, under which name and key. Raises UserError with the reason for a refusal.

    Cost, once it is its turn: nothing where the names of its files refuse it, half a second where a checkpoint's files are not what
    their names say; else 3 to 4 s, the import of PyTorch.
    """
    if bundle.kind == "checkpoint":
        check_checkpoint((file.name for file in bundle.files), f"the checkpoint {bundle.name!r}")
    elif bundle.kind == "bundle":
        check_bundle(bundle.path)
    with TURN:
        return _guarded(bundle, settings)


def _guarded(bundle: Bundle, settings: Settings) -> Bundle:
    job: dict[str, Any] = {"kind": bundle.kind, "name": bundle.name, "path": str(bundle.path)}
    job |= {"protocol": settings.protocol, "asked": settings.asked, "limits": settings.limits.model_dump(mode="json")}
    found = None
    for message in messages(__name__, job, settings.limits.model_copy(update={"seconds": SECONDS, "threads": 1})):
        if "refused" in message:
            raise UserError(str(message["refused"]))
        found = message.get("passed", found)
    if found is None:
        raise UserError("the check of the upload ended without a result")
    return replace(bundle, **found)


def _work(job: dict[str, Any]) -> dict[str, str]:
    """What passed: its kind, its name, and the sender's key."""
    from robustbench_rkhs.nodes.guard import guarded
    from robustbench_rkhs.nodes.limits import Limits
    from robustbench_rkhs.submission.quick_look import quick_look

    limits = parse(Limits, job["limits"], "limits")
    confine(limits.model_copy(update={"seconds": SECONDS, "threads": 1}))
    path, found = Path(job["path"]), {"kind": job["kind"], "name": job["name"], "sender": ""}
    with guarded(path.name):
        if job["kind"] == "checkpoint":
            quick_look(path, limits)
        elif job["kind"] == "bundle":
            path, found = _opened(path, job, limits)
        if found["kind"] == "checkpoint":
            from robustbench_rkhs.nodes.code_names import SUBMITTED
            from robustbench_rkhs.submission.gate import check, known_data
            from robustbench_rkhs.training import checkpoint

            check(path, limits)
            known_data(checkpoint.described(path, SUBMITTED, limits).recipe)
        else:
            from robustbench_rkhs.verdicts import read_adversarials

            read_adversarials(path, limits)
    return found


def _opened(path: Path, job: dict[str, Any], limits: "Limits") -> tuple[Path, dict[str, str]]:
    """The content of a bundle, and what it is. Raises UserError where its table says nothing of what this board asks."""
    from robustbench_rkhs.evaluation.recipe import EvalRecipe
    from robustbench_rkhs.nodes.code_names import code_in
    from robustbench_rkhs.submission.bundle import read_bundle
    from robustbench_rkhs.submission.bundle_check import check_model

    bundle = read_bundle(path, limits)
    if bundle.stated.kind == "adversarials":
        check_model(bundle, limits)
    else:
        ours, theirs = parse(EvalRecipe, job["protocol"], "protocol", code_in(job["protocol"])), bundle.recipe()
        if ours.norm != theirs.norm or set(ours.eps) - set(theirs.eps):
            needed = f"evaluate with rkhs-eval {job['asked']}, and pack the bundle again"
            raise UserError(f"its table says nothing of what this board asks: {needed}")
    return bundle.content, {"kind": bundle.stated.kind, "name": bundle.stated.name, "sender": bundle.sender}


def _tell(output: int, **message: Any) -> None:
    os.write(output, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    OUTPUT = os.dup(1)
    os.dup2(2, 1)  # keep what libraries print out of the messages
    given = json.loads(sys.stdin.buffer.read())
    end_with(int(given["parent"]))
    try:
        passed = _work(given)
    except UserError as refused:
        _tell(OUTPUT, refused=str(refused))
    else:
        _tell(OUTPUT, passed=passed)
