"""rkhs-audit: compare claimed accuracies with certificates and attacks."""

from pathlib import Path
from typing import Any

from robustbench_rkhs.cli.command import AllowCode, AsJson, Names, Weights, command, failure, typed_command
from robustbench_rkhs.cli.display import Quiet, shown
from robustbench_rkhs.cli.endings import code_of
from robustbench_rkhs.cli.engines import chosen_engine, leading, submitted
from robustbench_rkhs.cli.screen import console_of_width, ending
from robustbench_rkhs.cli.values import Device, EngineName, Folder
from robustbench_rkhs.evaluation.engine_choice import Submitit, engine_from
from robustbench_rkhs.nodes.paths import check_names


def _audit(
    typed: dict[str, Any],
    /,
    model: str,
    claim: Names,
    weights: Weights = None,
    data: str | None = None,
    allow_code: AllowCode = (),
    device: Device = "auto",
    out: Folder = Path("reports"),
    as_json: AsJson = False,
    quiet: Quiet = False,
    engine: EngineName = "here",
) -> int:
    """Compare claimed accuracies with certificates and attacks, and name the known mistakes that would explain a gap.

    $ rkhs-audit --model mypackage.nets:build --weights theirs.pth --data cifar10 --claim certified@36/255=0.62 clean=0.81

    Verdicts: upheld, not proved (open images might still be robust), refuted (more than attacks left unbroken: exit code 1).
    Exit code 3: the budget ended first; 130: interrupted, nothing is written.
    Every field of the evaluation's recipe is a flag, except eps, which the claims contain.

    Args:
        model: Name in checkpoints/, checkpoint folder, or package.module:builder.
        claim: certified@EPS=SHARE, robust@EPS=SHARE or clean=SHARE; shares from 0 to 1.
        weights: Weights for a recipe or builder: .safetensors or .pth (.pt .ckpt .bin ...); FILE:state_dict[0] for a part of it.
        data: Data set or FILE.npz instead of the recipe's.
        allow_code: Your own packages, modules, folders or .py files whose code a checkpoint folder may name and import.
        device: auto, cpu, cuda, cuda:1 ...
        out: Folder for local/audits/MODEL-DIGEST.*.
        as_json: Print one JSON object on stdout, the tables on stderr.
        engine: What computes: here; torchrun or srun, in each process that these start; submitit:tasks=8,partition=NAME, a Slurm
            job array; ray:gpus=1, a cluster.
    """
    if isinstance(array := engine_from(engine), Submitit):
        return submitted(array, device, quiet)
    check_names([model], weights, data)
    from robustbench_rkhs.audit import Claim
    from robustbench_rkhs.audit import audit as run
    from robustbench_rkhs.cli.settings import eval_recipe
    from robustbench_rkhs.nodes.code_names import TYPED
    from robustbench_rkhs.reports.audit import console_audit, write_audit
    from robustbench_rkhs.reports.places import Places
    from robustbench_rkhs.zoo import load_model

    claims = [Claim.read(text) for text in claim]
    defaults: dict[str, Any] = {"eps": sorted({one.eps for one in claims})}
    if "effort" not in typed:
        defaults["attacks"] = ["pgd"]
    recipe = eval_recipe(typed, "rkhs-audit", TYPED, **defaults)
    choice, where = chosen_engine(engine, device)
    with leading(choice) as leads, shown(screen := console_of_width(140, stderr=as_json), quiet or not leads):
        subject = load_model(model, weights, data, allow_code)
        found = run(
            subject.model,
            subject.test,
            claims,
            recipe,
            name=subject.name,
            folder=Places(out).local / "audits" / "verdicts",
            device=where,
            command=typed_command(),
            engine=choice,
        )
    refuted = any(row["verdict"] == "refuted" for row in found["claims"])
    code = code_of(bool(found["breaches"] or refuted or found["protocol_failed"]), [found["about"]["incomplete_because"]])
    if not leads:
        return code
    for table in console_audit(found):
        screen.print(table)
    for line in found["failed"]:
        failure(line)
    written = write_audit(found, Places(out).stem("audits", subject.name, found["about"]))
    ending(screen, "audit", found, written, as_json)
    return code


main = command(_audit, recipe={"eps": None, "attacks": "pgd"})
