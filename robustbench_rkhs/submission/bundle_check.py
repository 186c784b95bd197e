"""Bundles through the gate: checked, evaluated again and, where asked, published; with a result that is plain data."""

import filecmp
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from robustbench_rkhs.nodes.guard import guarded
from robustbench_rkhs.nodes.limits import STRANGERS, Limits
from robustbench_rkhs.nodes.missing import missing_folder
from robustbench_rkhs.nodes.node import Node, Seed, UserError
from robustbench_rkhs.runtime.events import OnEvent
from robustbench_rkhs.runtime.sinks import for_line
from robustbench_rkhs.submission.bundle import Bundle, read_bundle
from robustbench_rkhs.submission.bundle_names import MOST, PUBLIC, SIGNATURE, STATED, VERDICTS, is_bundle
from robustbench_rkhs.submission.gate import Incomplete, submit, submit_adversarials
from robustbench_rkhs.verdicts import read_adversarials

BUNDLES = 5
"""Most new bundles of a folder that are checked."""
ONCE = ("--known", "--draw", "--result", "--json", "--quiet")
"""Flags of a check that are not repeated, but the first for adversarial images, whose model may lie there."""
Line = Annotated[str, Field(max_length=2000)]


class CheckResult(Node):
    """What a check found. As JSON it goes from the job that checks to the job that comments, which takes it for data."""

    bundle: Annotated[str, Field(max_length=300)]
    kind: Annotated[str, Field(max_length=20)] = ""
    name: Annotated[str, Field(max_length=100)] = ""
    accepted: bool | None = None
    """None: undecided, as the evaluation ran out of its budget."""
    reason: Line = ""
    """Why it is refused or undecided."""
    lines: Annotated[tuple[Line, ...], Field(max_length=200)] = ()
    seed: Seed | None = None
    """Of the images of the sample."""
    command: Line = ""
    """What shows the same."""
    seconds: Annotated[float, Field(ge=0)] = 0.0


def submit_bundle(
    path: Path,
    *,
    sample: int,
    device: str,
    out: Path,
    settings: Mapping[str, Any] | None = None,
    command: str = "",
    limits: Limits = STRANGERS,
    on_event: OnEvent | None = None,
    seed: int | None = None,
    publish: bool = True,
    known: Path | None = None,
) -> Iterator[str]:
    """Check and evaluate a bundle as `gate.submit` and `gate.submit_adversarials` do; yields a line per step.

    `settings`: fields of the evaluation's recipe that take the place of the sender's. A checkpoint's sample is compared with the
    sender's own table, then it is evaluated in full. Raises UserError with the reason for a refusal.
    """
    bundle = read_bundle(path, limits)
    count = len(bundle.stated.files)
    yield f"bundle: {bundle.stated.kind} {bundle.stated.name}, {count} file{'s' * (count > 1)} as signed by {bundle.sender[:12]}"
    both: dict[str, Any] = {"device": device, "out": out, "command": command, "limits": limits, "publish": publish}
    if bundle.stated.kind == "adversarials":
        if settings:
            raise UserError(f"{', '.join(settings)}: not for adversarial images")
        check_model(bundle, limits)
        yield from submit_adversarials(bundle.content, known=known, **both)
        return
    more: dict[str, Any] = {"sender": bundle.sender, "table": bundle.verdicts, "seed": seed, "on_event": on_event}
    yield from submit(bundle.content, bundle.recipe(**settings or {}), sample=sample, **both, **more)


def check_model(bundle: Bundle, limits: Limits = STRANGERS) -> None:
    """Raises UserError where a bundle's adversarial images cannot be read, or are of another model than it names."""
    with guarded(bundle.content):
        model = read_adversarials(bundle.content, limits).about.model
    if model.partition("~")[0] != bundle.stated.name:
        raise UserError(f"{bundle.content} is of the model {model[:64]!r}, {STATED} names {bundle.stated.name!r}")


def check_bundle(path: Path, tell: Callable[[str], object], *, seed: int | None = None, **settings: Any) -> CheckResult:
    """The result of a check that publishes nothing; every refusal is part of it. `tell` is called with each line.

    Further settings as for `submit_bundle`.
    """
    found: dict[str, Any] = {"bundle": str(path)[:300], "seed": seed}
    lines, begin = list[str](), time.monotonic()
    try:
        stated = read_bundle(path, settings.get("limits", STRANGERS)).stated
        found |= {"kind": stated.kind, "name": stated.name}
        for line in submit_bundle(path, seed=seed, publish=False, **settings):
            tell(line)
            lines.append(line[:2000])
        found |= {"accepted": True}
    except Incomplete as early:
        found |= {"accepted": None, "reason": for_line(early)[:2000]}
    except UserError as refused:
        found |= {"accepted": False, "reason": for_line(refused)[:2000]}
    drawn = next((line.rpartition("seed ")[2] for line in lines if "drawn by the gate, seed " in line), "")
    found["seed"] = int(drawn) if drawn.isdigit() else seed
    once = ONCE[1:] if found.get("kind") == "adversarials" else ONCE
    command = again(settings.get("command", ""), path, found["seed"], once)[:2000]
    return CheckResult(**found, lines=tuple(lines[:200]), command=command, seconds=time.monotonic() - begin)


def again(command: str, path: Path, seed: int | None, once: Sequence[str] = ONCE) -> str:
    """The command that checks one bundle with the same settings and on the same images."""
    words = shlex.split(command)
    begin = next((place for place, word in enumerate(words) if place > 1 and word.startswith("--")), len(words))
    kept, skipped = list[str](), False
    for word in words[begin:]:
        if word.startswith("--"):
            skipped = word.partition("=")[0] in once
        kept += [] if skipped else [word]
    return shlex.join(["rkhs-submit", "check", str(path), *kept, *(["--draw", str(seed)] if seed is not None else [])])


def new_bundles(path: Path, known: Path | None = None) -> list[Path]:
    """The bundle itself, or the bundles in a folder that are not, file by file, in `known`.

    Raises UserError for what is no folder, with the name that was perhaps meant, and for too many.
    """
    if known is not None and not known.is_dir():
        raise missing_folder("folder of known bundles", str(known))
    if path.is_symlink():
        raise UserError(f"{path} is a link: expected the folder itself")
    if not path.exists():
        raise missing_folder("bundle", str(path))
    if not path.is_dir():
        raise UserError(f"{path} is a file: expected a bundle, the folder that rkhs-submit ... --bundle writes")
    if is_bundle(path) or any((path / name).is_file() for name in (PUBLIC, SIGNATURE, VERDICTS)):
        return [path]
    folders = sorted(entry for entry in islice(path.iterdir(), 100_000) if entry.is_dir() or entry.is_symlink())
    new = [one for one in folders if known is None or not _same(one, known / one.name)]
    if len(new) > BUNDLES:
        raise UserError(f"{path} holds {len(new)} new bundles, expected at most {BUNDLES}")
    return new


def _same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files, byte for byte; a link is never the same."""
    if one.is_symlink() or not other.is_dir():
        return False
    names = [sorted(entry.name for entry in islice(os.scandir(folder), MOST + 1)) for folder in (one, other)]
    if names[0] != names[1] or len(names[0]) > MOST:
        return False
    for name in names[0]:
        a, b = one / name, other / name
        if a.is_symlink() or a.is_dir() != b.is_dir():
            return False
        if not (_same(a, b) if a.is_dir() else filecmp.cmp(a, b, shallow=False)):
            return False
    return True
