"""rkhs-verify: files of certificates and of adversarial images, checked again."""

import sys
from pathlib import Path
from typing import Annotated

import tyro

from robustbench_rkhs.cli.command import Weights, command, usable_device
from robustbench_rkhs.cli.failures import Call, left
from robustbench_rkhs.cli.flags import readable
from robustbench_rkhs.cli.screen import printed
from robustbench_rkhs.nodes.guard import guarded
from robustbench_rkhs.nodes.limits import OWN, STRANGERS
from robustbench_rkhs.nodes.node import UserError


def _verify_adversarials(
    files: Annotated[tuple[Path, ...], tyro.conf.Positional],
    model: str | None = None,
    weights: Weights = None,
    data: str | None = None,
    device: str = "auto",
) -> int:
    """Re-check files of adversarial images, each image against the data and the model asked again.

    $ rkhs-verify adversarials/digits_mlp-l2.npz

    Exit code 0: all images confirmed; 1: some refused, with the reason; 2: not such a file.

    Args:
        files: FILE.npz as rkhs-eval --save-adversarials writes it.
        model: Name in checkpoints/, checkpoint folder or package.module:builder; the checkpoint the file names where not given.
        weights: Weights (.safetensors, or .pth of a plain state dict) for a recipe or builder.
        data: Data set or FILE.npz in place of the recipe's.
        device: auto, cpu, cuda, cuda:1 ...
    """
    from robustbench_rkhs.submission.adversarials import judge, named_by
    from robustbench_rkhs.verdicts import read_adversarials

    where, code = usable_device(device), 0
    for file in files:
        try:
            with guarded(file):
                stored = read_adversarials(file, STRANGERS.model_copy(update={"images": OWN.images}))
                judged = judge(stored, named_by(stored, model, weights, data), where)
        except UserError as error:
            printed(f"error: {error}", stderr=True)
            code = 2
            continue
        printed("\n".join(judged.lines()))
        code = max(code, 0 if judged.confirmed.all() else 1)
    return code


def main() -> None:
    """Re-check certificate files: NumPy alone, no torch; exit code 1 where one is not true, 2 where it is none.

    A FILE.npz is of adversarial images: re-checked by asking the model.
    """
    if any(word.endswith(".npz") for word in sys.argv[1:]):
        command(_verify_adversarials)()
    from robustbench_rkhs.verifier.command import main as check

    more = "Of adversarial images: rkhs-verify FILE.npz --help"

    def checked() -> Call:
        code = check(readable(sys.argv[1:]), more)
        return lambda: code

    raise SystemExit(left(checked)[0])
