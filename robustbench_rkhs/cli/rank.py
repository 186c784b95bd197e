"""rkhs-rank: ranking quality of models."""

from pathlib import Path

from robustbench_rkhs.cli.command import AllowCode, AsJson, Names, command, typed_command, usable_device
from robustbench_rkhs.cli.display import Quiet, shown
from robustbench_rkhs.cli.screen import console_of_width, emit, printed
from robustbench_rkhs.cli.values import Device, Folder
from robustbench_rkhs.nodes.paths import check_names


def _rank(
    model: Names,
    data: str | None = None,
    allow_code: AllowCode = (),
    device: Device = "auto",
    out: Folder = Path("reports"),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure auROC and auROC50 of ranking models (protein homology) on the test set; write OUT/local/ranking/MODEL-DIGEST.json.

    $ rkhs-rank --model protein_1_34

    Args:
        model: Names in checkpoints/, checkpoint folders, package.module:builder, or FILE.onnx.
        data: Data set instead of the recipe's.
        allow_code: Your own packages, modules, folders or .py files whose code a checkpoint folder may name and import.
        device: auto, cpu, cuda, cuda:1 ...
        out: Folder for reports.
        as_json: Print one JSON object on stdout: the content of the files, and their paths.
    """
    check_names(model, data=data)
    from datetime import date

    from robustbench_rkhs.identity import key_of
    from robustbench_rkhs.reports.places import Places
    from robustbench_rkhs.runtime import events
    from robustbench_rkhs.runtime.digests import weights_digest
    from robustbench_rkhs.runtime.seals import write_record
    from robustbench_rkhs.training.ranking import rank_report
    from robustbench_rkhs.zoo import load_model

    where, ranked, files = usable_device(device), [], []
    for name in model:
        with shown(console_of_width(120, stderr=as_json), quiet):
            subject = load_model(name, None, data, allow_code=allow_code)
            test = subject.test.to(where)
            events.emit(events.PhaseStarted(phase=f"ranking {len(test)} images"))
            found = rank_report(subject.model.to(where), test)
        about = {
            "model": subject.name,
            "data": subject.test.data,
            "data_digest": subject.test.digest,
            "weights": weights_digest(subject.model.state_dict()),
            "key": key_of(subject.model),
            "seed": subject.seed,
            "date": date.today().isoformat(),
            "command": typed_command(),
        }
        path = Path(f"{Places(out).stem('ranking', subject.name, about)}.json")
        write_record(path, found | about)
        ranked.append(found | about)
        files.append(path)
        printed(
            f"{subject.name}: auROC {found['auroc']:.4f}, auROC50 {found['auroc50']:.4f} "
            f"({found['members']} members among {found['others']} others of {subject.test.data} test): {path}"
        )
    if as_json:
        emit({"ranked": ranked, "files": files})


main = command(_rank)
