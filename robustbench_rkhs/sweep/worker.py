"""A worker: takes trials from the journal and trains them until none is left, then writes the report."""

import os
from pathlib import Path
from typing import Any

import torch
from optuna.trial import Trial, TrialState

from robustbench_rkhs.data import Split
from robustbench_rkhs.nodes.differences import told
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.reports.sweep import runs_csv, summarised, write_sweep
from robustbench_rkhs.runtime.events import Message, OnEvent, emit, listening
from robustbench_rkhs.runtime.files import Unwritable, write_text
from robustbench_rkhs.sweep.description import Range
from robustbench_rkhs.sweep.journal import Journal, locked, setting_of
from robustbench_rkhs.sweep.plan import Plan
from robustbench_rkhs.sweep.trials import Stopped, certified_share, run_trial
from robustbench_rkhs.training import checkpoint

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def check(plan: Plan) -> Split:
    """The validation images, after checks of recipes, data, networks and certificates. Raises UserError."""
    recipes = plan.recipes()
    validation = recipes[0].data.load().validation
    refusals = []
    networks = {recipe.network: recipe for recipe in recipes}
    for recipe in networks.values():
        model = checkpoint.build(recipe, validation.shape, validation.classes).eval()
        if plan.sweep.pick == "validation_certified":
            share, refused = certified_share(plan, model, validation.take(torch.arange(1)))
            refusals += [refused] if share is None else []
    if refusals and len(refusals) == len(networks):
        raise UserError(f"pick validation_certified: no network of this sweep can be certified: {refusals[0]}")
    return validation


def work(
    plan: Plan, name: str, folder: Path, reports: Path, *, device: str, command: str, on_event: OnEvent | None = None
) -> dict[str, Any]:
    """Run settings until none is left, then write FOLDER/results.csv, FOLDER/best.yaml and REPORTS/NAME.*.

    Returns the report; its `finished` is false where other workers still train. Raises UserError, before anything is trained,
    for a sweep that its recipe refuses or that differs from that of the folder.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("a sweep under torchrun needs --engine torchrun: each process is then a worker that trains alone")
    validation = check(plan)
    data = {"data": validation.data, "data_digest": validation.digest}
    journal = Journal(folder, plan, data | {"command": command, "images": len(validation), "torch": torch.__version__})
    while claimed := journal.claim():
        trial, lock = claimed
        try:
            with listening(on_event):
                _try(journal, trial, device, command)
        finally:
            lock.release()
        with locked(folder / "lock"):
            write_text(folder / "results.csv", runs_csv(gather(journal, name)))
    with locked(folder / "lock"):
        found = gather(journal, name)
        written = [folder / "results.csv"]
        write_text(written[0], runs_csv(found))
        if found["finished"]:
            picked = next((row for row in found["settings"] if row["picked"]), None)
            if picked:
                recipe = plan.recipe(picked["setting"], plan.sweep.seeds[0])
                written.append(folder / "best.yaml")
                write_text(written[-1], f"# rkhs-train --model {folder / 'best.yaml'} --out checkpoints/mine\n{recipe.yaml()}")
            written += write_sweep(found, reports / name)
        return found | {"files": [str(path) for path in written]}


def _try(journal: Journal, trial: Trial, device: str, command: str) -> None:
    """Run one trial: scored, pruned, or failed with the reason. After any other error it can be taken up again."""
    plan, folder = journal.plan, journal.folder / "trials" / f"{trial.number:04d}"
    setting = setting_of(plan, trial.params)
    words = ", ".join(f"{key} {told(value)}" for key, value in setting.items())
    emit(Message(text=f"trial {trial.number} of {plan.trials}: {words}"))
    try:
        runs = run_trial(plan, trial, setting, folder, device, command)
    except Stopped:
        _tell(journal, trial, TrialState.PRUNED, [], "stopped: below the median of the others at the same epoch")
    except Unwritable:
        raise
    except UserError as error:
        _tell(journal, trial, TrialState.FAIL, [], str(error))
    else:
        key = plan.sweep.pick.removeprefix("validation_")
        values = [run[key] for run in runs if run[key] is not None]
        if len(values) < len(runs):
            refused = next(run["refused"] for run in runs if run["refused"])
            _tell(journal, trial, TrialState.FAIL, runs, f"no score: {refused}")
        else:
            trial.set_user_attr("runs", runs)
            journal.study.tell(trial, sum(values) / len(values))
            words = f"rkhs-train --model {runs[0]['folder']}/recipe.yaml --out checkpoints/mine"
            emit(Message(text=f"trial {trial.number} again by hand: {words}"))


def _tell(journal: Journal, trial: Trial, state: TrialState, runs: list[dict[str, Any]], reason: str) -> None:
    trial.set_user_attr("runs", runs)
    trial.set_user_attr("reason", reason)
    journal.study.tell(trial, state=state)
    emit(Message(text=f"trial {trial.number} {STATES[state]}: {reason}"))


def gather(journal: Journal, name: str) -> dict[str, Any]:
    """The content of the journal as plain values: sweep, settings with runs, Pareto front and pick."""
    plan, sweep = journal.plan, journal.plan.sweep
    rows = [
        {
            "trial": trial.number,
            "state": STATES[trial.state],
            "reason": trial.user_attrs.get("reason", ""),
            "setting": setting_of(plan, trial.params or trial.system_attrs.get("fixed_params", {})),
            "runs": trial.user_attrs.get("runs", []),
        }
        for trial in journal.trials()
    ]
    runs = [run for row in rows for run in row["runs"]]
    record, about = journal.study.user_attrs["record"], journal.study.user_attrs["about"]
    about = about | {
        "name": name,
        "about": sweep.about,
        "recipe": sweep.recipe,
        "data": record["data"],
        "data_digest": record["data_digest"],
        "fields": list(sweep.vary),
        "values": {key: [told(value) for value in one] for key, one in sweep.vary.items() if not isinstance(one, Range)},
        "sampler": sweep.sampler,
        "seeds": list(sweep.seeds),
        "pick": sweep.pick,
        "eps": sweep.eps,
        "norm": sweep.norm,
        "steps": sweep.steps,
        "device": "; ".join(sorted({run["device"] for run in runs})) or "no device",
        "date": max((run["date"] for run in runs), default="no date"),
        "best": str(journal.folder / "best.yaml"),
    }
    finished = len(rows) >= plan.trials and all(row["state"] in ("complete", "pruned", "failed") for row in rows)
    return {"about": about, "finished": finished, "settings": summarised(rows, sweep.pick.removeprefix("validation_"))}
