"""Evaluates one submission by the gate, in a process of its own: `python -m robustbench_rkhs.service.evaluating`.

Its messages are lines of the log, events of the evaluation, and the outcome. Another process brings the site up to date.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from robustbench_rkhs.nodes.names import folder_of
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.parsing import parse
from robustbench_rkhs.runtime.children import confine, end_with, messages
from robustbench_rkhs.runtime.events import AnyEvent, Event, Message
from robustbench_rkhs.runtime.files import Unwritable
from robustbench_rkhs.runtime.locks import InUse
from robustbench_rkhs.service import lifecycle
from robustbench_rkhs.service.bundles import kept
from robustbench_rkhs.service.database import Database
from robustbench_rkhs.service.lifecycle import Outcome
from robustbench_rkhs.service.settings import Settings
from robustbench_rkhs.service.submission import Status, Submission
from robustbench_rkhs.submission.bundle_names import IMAGES, is_bundle

EVENT: TypeAdapter[Any] = TypeAdapter(AnyEvent)
Tell = Callable[[Event], object]
"""What is called with events; a Message becomes a line of the log."""
Evaluate = Callable[[Settings, Submission, Tell], Outcome]
"""Evaluates a submission. Raises EvaluationFailed where that decided nothing."""
SITE = 3600.0
"""Seconds, over those of an evaluation, for the gate's own work and the site."""


class EvaluationFailed(Exception):
    """An evaluation ended without a decision: it is tried again."""


def evaluate(settings: Settings, one: Submission, tell: Tell) -> Outcome:
    """Evaluate a submission by the gate. Raises EvaluationFailed, with the reason."""
    job = {"kind": one.kind, "path": str(kept(settings, one.digest)), "name": one.name, "approved": one.approved}
    outcome = None
    try:
        for message in messages(__name__, {"settings": settings.model_dump(mode="json"), **job}, _longer(settings)):
            if "event" in message:
                tell(EVENT.validate_python(message["event"]))
            elif "status" in message:
                tables = tuple(map(str, message["tables"]))
                outcome = Outcome(Status(message["status"]), str(message["reason"]), tables)
    except (UserError, ValueError) as error:
        raise EvaluationFailed(str(error)) from None
    if outcome is None:
        raise EvaluationFailed("the evaluating process ended without a result")
    if outcome.status == Status.ACCEPTED:
        try:
            build_site_alone(settings)
        except UserError as error:
            tell(Message(text=f"the site could not be brought up to date: {error}"))
    return outcome


def build_site_alone(settings: Settings, reports: bool = False) -> None:
    """Bring the site up to date, with `reports` the reports in OUT, too, in a process of its own. Raises UserError."""
    job = {"settings": settings.model_dump(mode="json"), "kind": "site", "reports": reports}
    for _ in messages(__name__, job, _longer(settings)):
        pass


def _longer(settings: Settings) -> Any:
    """The limits of the gate's process, which waits for the one that evaluates."""
    return settings.limits.model_copy(update={"seconds": 2 * settings.limits.seconds + SITE})


def _work(job: dict[str, Any], send: Callable[..., None]) -> None:
    settings = parse(Settings, job["settings"], "settings")
    if job["kind"] == "site":  # not within the limits of an evaluation: figures need far more address space
        from robustbench_rkhs.reports.update import update
        from robustbench_rkhs.site import build_site

        if job["reports"]:
            update(settings.out)
        build_site(settings.out, settings.site)
        return
    from robustbench_rkhs.submission.gate import Held, Incomplete

    before = _tables(settings, job)
    try:
        for line in _steps(settings, job, lambda event: send(event=event.model_dump(mode="json"))):
            send(event=Message(text=line).model_dump(mode="json"))
    except Held as error:
        return send(status=Status.HELD, reason=str(error), tables=[])
    except Incomplete as error:  # the same again would end as early
        return send(status=Status.FAILED, reason=str(error), tables=[])
    except (InUse, Unwritable):
        raise  # no fault of what was sent: it is tried again
    except UserError as error:
        return send(status=Status.REFUSED, reason=str(error), tables=[])
    send(status=Status.ACCEPTED, reason="", tables=sorted(_tables(settings, job) - before or _tables(settings, job)))


def _steps(settings: Settings, job: dict[str, Any], on_event: Tell) -> Any:
    """The gate's work on a submission, step by step."""
    from robustbench_rkhs.evaluation.recipe import EvalRecipe
    from robustbench_rkhs.nodes.code_names import code_in
    from robustbench_rkhs.reports.protocol_flags import eval_command
    from robustbench_rkhs.submission import gate
    from robustbench_rkhs.submission.bundle import read_bundle

    path = Path(job["path"])
    both: dict[str, Any] = {"device": settings.device, "out": settings.out, "limits": settings.limits}
    both |= {"approved": job["approved"]}
    if job["kind"] == "checkpoint":
        recipe = parse(EvalRecipe, settings.protocol, "protocol", code_in(settings.protocol))
        both |= {"sample": settings.sample, "on_event": on_event, "command": eval_command(job["name"], settings.protocol)}
        if is_bundle(path):
            bundle = read_bundle(path, settings.limits)
            return gate.submit(bundle.content, recipe, sender=bundle.sender, table=bundle.verdicts, **both)
        return gate.submit(path, recipe, **both)
    confine(settings.limits, memory=settings.device == "cpu")
    file = _images(path)
    return gate.submit_adversarials(file, model=_model_of(settings, file), command=f"rkhs-submit adversarials {IMAGES}", **both)


def _images(path: Path) -> Path:
    """The file of adversarial images, in a bundle or as it was sent."""
    return path / IMAGES if is_bundle(path) else path


def _model_of(settings: Settings, path: Path) -> str | None:
    """The folder of the model that a file of adversarial images names, if it was accepted here; else None: it is looked up.

    The very function that it names, where that is kept in OUT; else the latest of its name, from before accepted ones were kept.
    """
    from robustbench_rkhs.nodes.guard import guarded
    from robustbench_rkhs.submission.accepted import accepted_model
    from robustbench_rkhs.verdicts import read_adversarials

    with guarded(path.name):
        stored = read_adversarials(path, settings.limits)
        name = stored.about.model.partition("~")[0]
        if folder_of(settings.out / "verdicts", name).is_dir() and (kept_here := accepted_model(stored, settings.out)):
            return kept_here
    found = lifecycle.accepted(Database(settings), name)
    if found is None:
        return None
    folder = kept(settings, found.digest)
    return str(folder / found.name if is_bundle(folder) else folder)


def _tables(settings: Settings, job: dict[str, Any]) -> set[str]:
    """Tables of the board that this submission may have written: paths below OUT."""
    if job["kind"] == "checkpoint":
        found = folder_of(settings.out / "verdicts", job["name"]).glob("*.parquet")
    else:
        with _images(Path(job["path"])).open("rb") as file:
            sha = hashlib.file_digest(file, "sha256").hexdigest()
        found = (settings.out / "submitted").glob(f"*/*-{sha[:12]}.parquet")
    return {path.relative_to(settings.out).as_posix() for path in found}


if __name__ == "__main__":
    OUTPUT = os.dup(1)
    os.dup2(2, 1)  # keep what libraries print out of the messages

    def _send(**message: Any) -> None:
        os.write(OUTPUT, json.dumps(message).encode() + b"\n")

    given = json.loads(sys.stdin.buffer.read())
    end_with(int(given["parent"]))
    _work(given, _send)
