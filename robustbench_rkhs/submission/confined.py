"""Evaluates a submitted bundle in a separate process: `python -m robustbench_rkhs.submission.confined`, the job on standard input.

The result is the table that it writes; standard output carries its path and messages, one JSON object per line.
"""

import json
import os
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from robustbench_rkhs import verdicts
from robustbench_rkhs.evaluation.recipe import EvalRecipe
from robustbench_rkhs.nodes.code_names import code_in
from robustbench_rkhs.nodes.limits import Limits
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.parsing import explain, parse
from robustbench_rkhs.runtime.children import confine, end_with, messages
from robustbench_rkhs.runtime.events import AnyEvent, Event, emit
from robustbench_rkhs.runtime.sinks import for_line
from robustbench_rkhs.verdicts import Evaluation

EVENT: TypeAdapter[Any] = TypeAdapter(AnyEvent)
SAID = TypeAdapter(list[str])


@dataclass(frozen=True)
class Claims:
    """The sender's table, with which the first evaluation is compared, on a sample of its images drawn by this seed."""

    table: Path
    sample: int
    seed: int
    tell: Callable[[str], object] = print
    """Called with each line of the comparison."""


def evaluations(
    path: Path,
    name: str,
    recipes: list[EvalRecipe],
    device: str,
    folder: Path,
    command: str,
    limits: Limits,
    claims: Claims | None = None,
) -> Generator[Evaluation]:
    """Evaluate the bundle with one recipe after another, lazily; the tables are written under folder/name.

    With `claims` the first is of a random sample of the images of that table, and the bundle is refused where the table claims
    more than was found. Raises UserError if the bundle is refused, or needs more memory or time than the limits allow.
    """
    job = {
        "path": str(path),
        "name": name,
        "recipes": [recipe.model_dump(mode="json", exclude_unset=True) for recipe in recipes],
        "device": device,
        "folder": str(folder),
        "command": command,
        "limits": limits.model_dump(mode="json"),
        "claims": claims and {"table": str(claims.table), "sample": claims.sample, "seed": claims.seed},
    }
    for message in messages(__name__, job, limits):
        if "refused" in message:
            raise UserError(str(message["refused"]))
        if claims is not None and "compared" in message:
            _compared(claims, message["compared"])
        if "table" in message:
            yield verdicts.read(str(message["table"]))
        elif "event" in message:
            emit(_event(message["event"]))


def _compared(claims: Claims, stored: Any) -> None:
    """Pass on the lines of a comparison, which the process is not trusted to send. Raises UserError."""
    try:
        lines = SAID.validate_python(stored)
    except ValidationError as error:
        raise UserError(f"the evaluating process sent an invalid comparison: {explain(error)}") from None
    for line in lines:
        claims.tell(for_line(line)[:2000])


def _event(stored: Any) -> Event:
    """An event of the process, which is not trusted to send one. Raises UserError."""
    try:
        found: Event = EVENT.validate_python(stored)
    except ValidationError as error:
        raise UserError(f"the evaluating process sent an invalid event: {explain(error)}") from None
    return found


def _tell(**message: Any) -> None:
    os.write(OUTPUT, json.dumps(message).encode() + b"\n")


def _told(event: Event) -> None:
    _tell(event=event.model_dump(mode="json"))


def _work(job: dict[str, Any]) -> None:
    """Load the bundle, evaluate it, and send the path of each table."""
    import torch

    from robustbench_rkhs.evaluation.run import evaluate
    from robustbench_rkhs.evaluation.training_accuracy import training_images
    from robustbench_rkhs.submission.claims import evaluate_sample
    from robustbench_rkhs.training import checkpoint

    limits = parse(Limits, job["limits"], "limits")
    torch.set_num_threads(min(limits.threads, os.cpu_count() or 1))
    confine(limits, memory=torch.device(job["device"]).type == "cpu")
    loaded = checkpoint.load(job["path"], limits=limits)
    test = loaded.recipe.data.test()
    where = {"name": job["name"], "folder": job["folder"], "device": job["device"], "command": job["command"]}
    where |= {"training": training_images(loaded.recipe.data)}
    for number, stored in enumerate(job["recipes"]):
        recipe = parse(EvalRecipe, stored, "evaluation", code_in(stored))
        if number or not job["claims"]:
            done = evaluate(loaded.model, test, recipe, **where, on_event=_told)
        else:
            claims = Path(job["claims"]["table"]), int(job["claims"]["sample"]), int(job["claims"]["seed"])
            done, found = evaluate_sample(*claims, loaded.model, test, recipe, **where, on_event=_told)
            _tell(compared=list(found.lines))
        _tell(table=str(done.path))


if __name__ == "__main__":
    OUTPUT = os.dup(1)
    os.dup2(2, 1)  # keep what libraries print out of the messages
    given = json.loads(sys.stdin.buffer.read())
    end_with(int(given["parent"]))
    try:
        _work(given)
    except UserError as refused:
        _tell(refused=str(refused))
