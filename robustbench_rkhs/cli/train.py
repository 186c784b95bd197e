"""rkhs-train: train a model by its recipe."""

import os

from robustbench_rkhs.cli.command import command, note, typed_command, usable_device
from robustbench_rkhs.cli.display import Quiet, shown
from robustbench_rkhs.cli.screen import console_of_width, printed
from robustbench_rkhs.cli.values import Device, Folder


def _train(
    fields: dict[str, str],
    /,
    model: str,
    out: Folder | None = None,
    device: Device = "auto",
    fresh: bool = False,
    half: bool = False,
    threads: int | None = None,
    quiet: Quiet = False,
) -> None:
    """Train a named model. Every field of its recipe is a flag: --epochs 3 --attack.eps 1.0 --data.train 1000.

    $ rkhs-train --model digits_mlp --out checkpoints/mine
    $ rkhs-train --model robust_vgg --epochs 20 --attack.steps 2
    $ torchrun --nproc-per-node 2 --no-python rkhs-train --model digits_trades

    `rkhs-list models digits_mlp` shows a recipe with every field. A training that was stopped goes on from where it was; a
    finished one is lengthened by more --epochs where its schedule does not depend on how many there are.

    An unchanged recipe of models/ is trained in checkpoints/MODEL. Any other training (fields changed by flags, or another
    recipe than that of the folder) goes to checkpoints/MODEL@mine, the next one to checkpoints/MODEL@mine2 and so on; the
    folder is printed. Git ignores them, and every command finds them by name: rkhs-eval --model robust_vgg@mine. A finished
    training in checkpoints/MODEL is only overwritten if --out gives its path.

    Args:
        model: Name in models/, or path of a YAML recipe.
        out: Checkpoint folder; default: checkpoints/MODEL or checkpoints/MODEL@mine (@mine2 ...), as above.
        device: auto, cpu, cuda, cuda:1 ...
        fresh: Train anew and overwrite the folder.
        half: Store the weights in half precision.
        threads: Threads of PyTorch on a CPU; default: one or all, whichever a few steps at the start show to be faster.
    """
    from robustbench_rkhs.runtime.events import listening
    from robustbench_rkhs.training.loop import train as run
    from robustbench_rkhs.training.named import prepared

    leads = os.environ.get("RANK", "0") == "0"  # the other processes of torchrun print nothing
    with listening(lambda event: note(str(event)) if leads else None):
        recipe, folder = prepared(model, out, fields, fresh)
    with shown(console_of_width(120, stderr=False), quiet or not leads, epochs=True):
        run(
            recipe,
            folder,
            device=usable_device(device),
            command=typed_command(),
            fresh=fresh,
            half=half,
            threads=threads,
        )
    if leads:
        printed(f"checkpoint: {folder}")


main = command(_train, overrides=True)
