"""rkhs-verify: re-check files of certificates and of adversarial images."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from robustbench_rkhs.cli.command import Weights, command, usable_device
from robustbench_rkhs.cli.failures import Call, left
from robustbench_rkhs.cli.flags import readable
from robustbench_rkhs.cli.screen import printed
from robustbench_rkhs.cli.values import Device, Folder
from robustbench_rkhs.nodes.guard import guarded
from robustbench_rkhs.nodes.limits import OWN, STRANGERS
from robustbench_rkhs.nodes.node import UserError


def _verify_adversarials(
    files: Annotated[tuple[Path, ...], tyro.conf.Positional],
    model: str | None = None,
    weights: Weights = None,
    data: str | None = None,
    device: Device = "auto",
    out: Folder = Path("reports"),
) -> int:
    """Re-check files of adversarial images: each image is compared with the data and classified again by the model.

    $ rkhs-verify adversarials/digits_mlp-l2.npz

    Exit code 0: all images confirmed; 1: some refused, with the reason; 2: not such a file.

    Args:
        files: FILE.npz as written by rkhs-eval --save-adversarials.
        model: Name in checkpoints/, checkpoint folder or package.module:builder; default: the checkpoint named in the file, in
            OUT/accepted or checkpoints/.
        weights: Weights for a recipe or builder: .safetensors or .pth (.pt .ckpt .bin ...); FILE:state_dict[0] for a part of it.
        data: Data set or FILE.npz instead of the recipe's.
        device: auto, cpu, cuda, cuda:1 ...
        out: Where submissions were accepted.
    """
    from robustbench_rkhs.submission.accepted import accepted_model
    from robustbench_rkhs.submission.adversarials import judge, named_by
    from robustbench_rkhs.verdicts import read_adversarials

    where, code = usable_device(device), 0
    for file in files:
        try:
            with guarded(file):
                stored = read_adversarials(file, STRANGERS.model_copy(update={"images": OWN.images}))
                of = model or (accepted_model(stored, out) if weights is None else None)
                judged = judge(stored, named_by(stored, of, weights, data), where)
        except UserError as error:
            printed(f"error: {error}", stderr=True)
            code = 2
            continue
        printed("\n".join(judged.lines()))
        code = max(code, 0 if judged.confirmed.all() else 1)
    return code


def _checked(names: Sequence[str]) -> None:
    """Refuses files, all of which are missing or of another kind, before PyTorch is loaded, which takes seconds."""
    from robustbench_rkhs.nodes.missing import missing
    from robustbench_rkhs.verdicts.adversarials import check_kind

    faults = list[UserError]()
    for name in names:
        try:
            if not Path(name).exists():
                raise missing("file", name)
            check_kind(Path(name))
        except UserError as fault:
            faults.append(fault)
    if len(faults) == len(names):
        raise faults[0]


def main() -> None:
    """Re-check certificate files with NumPy alone, without torch; exit code 1 where one is false, 2 where it is not one.

    A FILE.npz holds adversarial images: re-checked by classifying them with the model.
    """
    if images := [word for word in sys.argv[1:] if word.endswith(".npz")]:
        code, fault = left(lambda: lambda: _checked(images))
        if fault:
            raise SystemExit(code)
        command(_verify_adversarials)()
    from robustbench_rkhs.verifier.command import main as check

    more = "Of adversarial images: rkhs-verify FILE.npz --help"

    def checked() -> Call:
        code = check(readable(sys.argv[1:]), more)
        return lambda: code

    raise SystemExit(left(checked)[0])
