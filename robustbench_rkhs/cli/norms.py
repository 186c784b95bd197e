"""rkhs-norms: bounds of the RKHS norm of a model."""

from pathlib import Path

from robustbench_rkhs.cli.command import AllowCode, AsJson, Names, Weights, command, typed_command
from robustbench_rkhs.cli.display import Quiet, shown
from robustbench_rkhs.cli.number import radii
from robustbench_rkhs.cli.screen import console_of_width, ending
from robustbench_rkhs.cli.values import Count, Folder
from robustbench_rkhs.nodes.node import Seed
from robustbench_rkhs.nodes.paths import check_names


def _norms(
    model: str,
    samples: Count | None = None,
    eps: Names = ("0.1", "0.5", "1.0"),
    training_samples: Count = 10000,
    seed: Seed = 0,
    weights: Weights = None,
    data: str | None = None,
    allow_code: AllowCode = (),
    out: Folder = Path("reports"),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Bounds of the RKHS norm of a model side by side, lower and upper, and the margin bound they would give.

    $ rkhs-norms --model digits_mlp --samples 200

    Args:
        model: Name in checkpoints/, checkpoint folder, or package.module:builder.
        samples: Number of test images (a seeded stratified subset); default: all.
        eps: Radii of the perturbations, l2 in pixels of [0, 1].
        training_samples: Number of training images whose margins are measured, at most.
        seed: Seed of the choice of images and of all random numbers.
        weights: Weights for a recipe or builder: .safetensors or .pth (.pt .ckpt .bin ...); FILE:state_dict[0] for a part of it.
        data: Data set or FILE.npz instead of the recipe's.
        allow_code: Your own packages, modules, folders or .py files whose code a checkpoint folder may name and import.
        out: Folder for local/norms/MODEL-DIGEST.*, which git ignores until rkhs-report --publish norms/MODEL-DIGEST.
        as_json: Print one JSON object on stdout, the table on stderr.
    """
    check_names([model], weights, data)
    from robustbench_rkhs.reports.places import Places
    from robustbench_rkhs.reports.rkhs_norm import console_norms, write_norms
    from robustbench_rkhs.rkhs_norm import norm_report
    from robustbench_rkhs.zoo import load_model, training_images

    screen = console_of_width(120, stderr=as_json)
    with shown(screen, quiet):
        subject = load_model(model, weights, data, allow_code=allow_code)
        found = norm_report(
            subject.name,
            subject.model,
            subject.test,
            training_images(model, data, allow_code),
            eps=radii(eps),
            samples=samples,
            training_samples=training_samples,
            seed=seed,
            command=typed_command(),
        )
        written = write_norms(found, Places(out).stem("norms", subject.name, found["about"]))
    screen.print(console_norms(found))
    ending(screen, "norms", found, written, as_json)


main = command(_norms)
