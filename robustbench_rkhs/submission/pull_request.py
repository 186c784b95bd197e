"""A pull request with a bundle, opened by git and GitHub's own command gh."""

import shutil
import subprocess
import tempfile
from pathlib import Path

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.sinks import for_line
from robustbench_rkhs.submission.bundle import read_bundle
from robustbench_rkhs.submission.comment import PLACE

LARGEST = 100 << 20
"""Bytes of a file that GitHub takes."""


def open_pull_request(bundle: Path, repository: Path, remote: str = "origin") -> str:
    """The address of a new pull request that adds a bundle as submissions/NAME-DIGEST, from a new branch of its own.

    repository: a clone, whose working tree, branch and index stay as they are. Raises UserError where git or gh is missing, where
    one of them fails, or where a file is larger than GitHub takes; the bundle stays.
    """
    for program in ("git", "gh"):
        if shutil.which(program) is None:
            raise UserError(f"--pull-request needs {program}, which is not installed: add {bundle} to a pull request by hand")
    found = read_bundle(bundle)
    for name in found.stated.files:
        if (size := (bundle / name).stat().st_size) > LARGEST:
            raise UserError(f"{bundle / name} has {size:,} bytes, GitHub takes {LARGEST:,}: send {bundle} another way")
    digest = found.stated.files["verdicts.parquet"][:8]
    branch = f"submission-{found.stated.name}-{digest}"
    title = f"Submission: {found.stated.kind} of {found.stated.name}"
    with tempfile.TemporaryDirectory() as temporary:
        tree = Path(temporary) / "tree"
        _run(["git", "fetch", "--quiet", remote, "HEAD"], repository)
        _run(["git", "worktree", "add", "--quiet", "-b", branch, str(tree), "FETCH_HEAD"], repository)
        try:
            place = f"{PLACE}{found.stated.name}-{digest}"
            shutil.copytree(bundle, tree / place)
            _run(["git", "add", "--force", "--", place], tree)
            _run(["git", "commit", "--quiet", "--message", title], tree)
            _run(["git", "push", "--quiet", "--set-upstream", remote, branch], tree)
            text = f"Check it with `rkhs-submit check {place}`."
            return _run(["gh", "pr", "create", "--title", title, "--body", text, "--head", branch], tree)
        finally:
            _run(["git", "worktree", "remove", "--force", str(tree)], repository)
            _run(["git", "branch", "--quiet", "-D", branch], repository)


def _run(words: list[str], folder: Path) -> str:
    """The last line that a command prints. Raises UserError with its last line of error."""
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
        raise UserError(f"--pull-request: {' '.join(words[:3])} failed: {for_line(said[-1])[:300]}; the bundle is written")
    return for_line((done.stdout.strip().splitlines() or [""])[-1])
