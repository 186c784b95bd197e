"""rkhs-tightness: tightness of the certificate, layer by layer."""

from pathlib import Path

from robustbench_rkhs.cli.command import AllowCode, AsJson, Weights, command, typed_command
from robustbench_rkhs.cli.display import Quiet, shown
from robustbench_rkhs.cli.screen import console_of_width, ending
from robustbench_rkhs.cli.values import Count, Folder
from robustbench_rkhs.nodes.node import Seed
from robustbench_rkhs.nodes.paths import check_names


def _tightness(
    model: str,
    samples: Count = 32,
    seed: Seed = 0,
    weights: Weights = None,
    data: str | None = None,
    allow_code: AllowCode = (),
    out: Folder = Path("reports"),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare the proven bound of each layer with an empirical lower bound, to find where the certificate loses tightness.

    $ rkhs-tightness --model digits_conv --samples 32

    Args:
        model: Name in checkpoints/, checkpoint folder, or package.module:builder.
        samples: Number of test images (a seeded stratified subset), at most.
        seed: Seed of the choice of images and of all random numbers.
        weights: Weights for a recipe or builder: .safetensors or .pth (.pt .ckpt .bin ...); FILE:state_dict[0] for a part of it.
        data: Data set or FILE.npz instead of the recipe's.
        allow_code: Your own packages, modules, folders or .py files whose code a checkpoint folder may name and import.
        out: Folder for local/tightness/MODEL-DIGEST.*, which git ignores until rkhs-report --publish tightness/MODEL-DIGEST; the
            verdicts of the model are read from its verdicts/.
        as_json: Print one JSON object on stdout, the tables on stderr.
    """
    check_names([model], weights, data)
    from robustbench_rkhs.audit import tightness as run
    from robustbench_rkhs.reports.places import Places
    from robustbench_rkhs.reports.tightness import console_tightness, write_tightness
    from robustbench_rkhs.zoo import load_model

    screen = console_of_width(140, stderr=as_json)
    with shown(screen, quiet):
        subject = load_model(model, weights, data, allow_code=allow_code)
        folder = out / "verdicts"
        found = run(subject.name, subject.model, subject.test, samples=samples, seed=seed, folder=folder, command=typed_command())
        written = write_tightness(found, Places(out).stem("tightness", subject.name, found["about"]))
    for table in console_tightness(found):
        screen.print(table)
    ending(screen, "tightness", found, written, as_json)


main = command(_tightness)
