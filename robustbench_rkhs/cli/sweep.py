"""rkhs-sweep: train one recipe at many settings and pick one."""

import json
from pathlib import Path
from typing import Annotated

import tyro

from robustbench_rkhs.cli.command import command, note, typed_command
from robustbench_rkhs.cli.display import Quiet, shown
from robustbench_rkhs.cli.engines import chosen_engine, leading, submitted
from robustbench_rkhs.cli.screen import console_of_width, emit, told
from robustbench_rkhs.cli.values import Device, EngineName, Folder
from robustbench_rkhs.evaluation.engine_choice import Submitit, engine_from
from robustbench_rkhs.nodes.names import folder_of
from robustbench_rkhs.runtime.extras import require

LOCAL = Path("reports/local/sweeps")
"""Where reports of sweeps go, which git ignores, if no folder is named."""


def _sweep(
    fields: dict[str, str],
    /,
    sweep: str,
    name: str | None = None,
    device: Device = "auto",
    out: Folder = Path("sweeps"),
    reports: Folder = LOCAL,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
    quiet: Quiet = False,
    engine: EngineName = "here",
) -> int:
    """Train a recipe at many settings and pick one on validation images. Fields of the recipe are flags, as for rkhs-train.

    $ rkhs-sweep --sweep digits_gradient
    $ rkhs-sweep --sweep mine.yaml --epochs 20 --device cuda:0,cuda:1

    The same command on another core or machine with access to OUT is a second worker; a sweep that was stopped or killed goes on.

    Args:
        sweep: Name in models/sweeps/, or path of a YAML sweep.
        name: Name of the sweep; default: the name of the file.
        device: auto, cpu, cuda, cuda:1 ...; several with commas: a worker on each.
        out: Journal, trials, results.csv and best.yaml are in OUT/NAME.
        reports: The report is REPORTS/NAME.*; rkhs-report --publish sweeps/NAME copies it to reports/sweeps.
        as_json: Print one JSON object on stdout, the progress on stderr.
        engine: What trains: here; torchrun or srun, each process that these start is a worker; submitit:tasks=8,partition=NAME, a
            Slurm job array of workers; ray:gpus=1, a worker in each place of a cluster. All share OUT.
    """
    if isinstance(array := engine_from(engine), Submitit):
        return submitted(array, device, quiet)
    require("optuna", "sweep", "rkhs-sweep")
    from robustbench_rkhs.runtime.ignored import ignored
    from robustbench_rkhs.sweep import Plan, Sweep, Worker, swept

    choice, where = chosen_engine(engine, device)
    if reports == LOCAL:
        ignored(reports.parent)
    called = Path(sweep).stem if name is None else name
    own, plan = folder_of(out, called), Plan(Sweep.read(sweep), fields)
    screen = console_of_width(140, stderr=as_json)
    with leading(choice) as leads, shown(screen, quiet or not leads):
        for line in plan.notes:
            note(line)
        found = swept(choice, Worker(plan, called, own, reports, where, typed_command()))
    if not leads:
        return 0
    if not found["finished"]:
        told(screen, "all settings are taken; the worker that finishes the last one writes the report")
    for row in found["settings"] if found["finished"] else []:
        if row["picked"]:
            told(screen, f"picked by {plan.sweep.pick}: trial {row['trial']}, {json.dumps(row['setting'])}")
    told(screen, f"sweep: {' '.join(found['files'])}")
    if as_json:
        emit(found)
    return 0


main = command(_sweep, overrides=True)
