"""The comment on a pull request, from the result of its check, which is data of a stranger's job.

Every word of it stands in a code span, where GitHub reads no markup, link or mention.
"""

from collections.abc import Sequence
from pathlib import Path

from robustbench_rkhs.nodes.documents import json_of, read_text
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.parsing import parse
from robustbench_rkhs.runtime.sinks import for_markdown_code
from robustbench_rkhs.submission.bundle_check import BUNDLES, CheckResult

LINES = 20
"""Lines of a result that are repeated: GitHub takes comments of 65,536 characters."""
PLACE = "submissions/"
"""Where bundles lie in a repository."""
NOTE = (
    "These are the words of the job that checked this pull request. Nothing is merged or published by it: a person reads the pull "
    "request, merges it, and publishes with `rkhs-submit checkpoint BUNDLE` or `rkhs-submit adversarials BUNDLE`."
)


def read_results(path: Path) -> list[CheckResult]:
    """The results in a file of `rkhs-submit check --result`. Raises UserError for anything else."""
    stored = json_of(read_text(path), str(path))
    rows = stored.get("results") if isinstance(stored, dict) else None
    if not isinstance(rows, list) or len(rows) > BUNDLES or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: expected at most {BUNDLES} results")
    return [parse(CheckResult, row, str(path)) for row in rows]


def comment(results: Sequence[CheckResult], changed: Sequence[str] | None = None) -> str:
    """The comment, as Markdown. `changed`: the files that the pull request changes: where one lies elsewhere, its job ran code that
    nobody has read, and no result of it is repeated."""
    outside = [name for name in changed or () if not name.startswith(PLACE) or ".." in name.split("/")]
    if outside:
        names = ", ".join(for_markdown_code(name[:200]) for name in outside[:5])
        return (
            f"Not checked: this pull request also changes {names}. A submission changes files in `{PLACE}` alone; "
            "its result is not shown, since the job may have run other code.\n"
        )
    if not results:
        return f"No new bundle was found in `{PLACE}`.\n"
    return "\n".join([*(line for one in results for line in _lines(one)), NOTE, ""])


def _lines(one: CheckResult) -> list[str]:
    one = _as_in_repository(one)
    verdict = {True: "would be accepted", False: "refused", None: "undecided"}[one.accepted]
    found = [f"{for_markdown_code(one.name or one.bundle)}: **{verdict}**", ""]
    found += [f"{for_markdown_code(one.reason)}", ""] if one.reason else []
    found += [f"- {for_markdown_code(line[:300])}" for line in one.lines[:LINES]]
    return [*found, "", f"{one.seconds:.0f} s. The same on your machine: {for_markdown_code(one.command)}", ""]


def _as_in_repository(one: CheckResult) -> CheckResult:
    """The result with the bundle's path as it is in the sender's repository, without the folder into which the job put that."""
    before, place, rest = one.bundle.partition(PLACE)
    if not (before and place and rest):
        return one
    return one.model_copy(
        update={
            "bundle": place + rest,
            "reason": one.reason.replace(one.bundle, place + rest),
            "lines": tuple(line.replace(one.bundle, place + rest) for line in one.lines),
            "command": one.command.replace(one.bundle, place + rest),
        }
    )
