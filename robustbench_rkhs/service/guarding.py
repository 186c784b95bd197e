"""Checks an upload in a process of its own, before anything of it is kept: `python -m robustbench_rkhs.service.guarding`.

Only files that a submission may hold, of allowed sizes, whose headers and recipe can be read within the limits; no code.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.parsing import parse
from robustbench_rkhs.runtime.children import confine, end_with, messages
from robustbench_rkhs.service.bundles import Bundle
from robustbench_rkhs.service.settings import Settings

Guard = Callable[[Bundle, Settings], None]
"""Raises UserError with the reason where an upload is refused."""
SECONDS = 300.0
"""The longest that a check may take."""


def guard(bundle: Bundle, settings: Settings) -> None:
    """Check an upload. Raises UserError with the reason for a refusal. Cost: 3 to 4 s, the import of PyTorch."""
    job = {"kind": bundle.kind, "path": str(bundle.path), "limits": settings.limits.model_dump(mode="json")}
    passed = False
    for message in messages(__name__, job, settings.limits.model_copy(update={"seconds": SECONDS, "threads": 1})):
        if "refused" in message:
            raise UserError(str(message["refused"]))
        passed = passed or message.get("passed") is True
    if not passed:
        raise UserError("the check of the upload ended without a result")


def _work(job: dict[str, Any]) -> None:
    from robustbench_rkhs.nodes.guard import guarded
    from robustbench_rkhs.nodes.limits import Limits

    limits = parse(Limits, job["limits"], "limits")
    confine(limits.model_copy(update={"seconds": SECONDS, "threads": 1}))
    path = Path(job["path"])
    with guarded(path.name):
        if job["kind"] == "checkpoint":
            from robustbench_rkhs.submission.gate import check, known_data
            from robustbench_rkhs.training import checkpoint

            check(path, limits)
            known_data(checkpoint.described(path, limits=limits).recipe)
        else:
            from robustbench_rkhs.verdicts import read_adversarials

            read_adversarials(path, limits)


def _tell(output: int, **message: Any) -> None:
    os.write(output, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    OUTPUT = os.dup(1)
    os.dup2(2, 1)  # keep what libraries print out of the messages
    given = json.loads(sys.stdin.buffer.read())
    end_with(int(given["parent"]))
    try:
        _work(given)
    except UserError as refused:
        _tell(OUTPUT, refused=str(refused))
    else:
        _tell(OUTPUT, passed=True)
