"""rkhs-tightness: where the certificate is lost, layer by layer."""

from pathlib import Path

from robustbench_rkhs.cli.command import AllowCode, AsJson, Weights, command, typed_command
from robustbench_rkhs.cli.screen import console_of_width, ending
from robustbench_rkhs.cli.values import Count, Folder
from robustbench_rkhs.nodes.node import Seed


def _tightness(
    model: str,
    samples: Count = 32,
    seed: Seed = 0,
    weights: Weights = None,
    data: str | None = None,
    allow_code: AllowCode = (),
    out: Folder = Path("reports"),
    as_json: AsJson = False,
) -> None:
    """Layer by layer, the proven bound over what is found from below: where the certificate is lost.

    $ rkhs-tightness --model digits_conv --samples 32

    Args:
        model: Name in checkpoints/, checkpoint folder, or package.module:builder.
        samples: Test images, a seeded stratified subset; all where there are fewer.
        seed: Which images, and every random draw.
        weights: Weights (.safetensors, or .pth of a plain state dict) for a recipe or builder.
        data: Data set or FILE.npz in place of the recipe's.
        allow_code: Packages, modules, folders or .py files of your own whose code a checkpoint folder may name and have imported.
        out: tightness/MODEL.* goes here; verdicts of the model are looked for in verdicts/.
        as_json: Print one JSON object on stdout, the tables on stderr.
    """
    from robustbench_rkhs.audit import tightness as run
    from robustbench_rkhs.reports.tightness import console_tightness, write_tightness
    from robustbench_rkhs.zoo import load_model

    subject = load_model(model, weights, data, allow_code=allow_code)
    folder = out / "verdicts"
    found = run(subject.name, subject.model, subject.test, samples=samples, seed=seed, folder=folder, command=typed_command())
    screen = console_of_width(140, stderr=as_json)
    for table in console_tightness(found):
        screen.print(table)
    written = write_tightness(found, out / "tightness" / subject.name)
    ending(screen, "tightness", found, written, as_json)


main = command(_tightness)
