"""Our minimal-norm attacks beside foolbox's: how near to the nearest image any of them finds, and at what cost.

    python benchmarks/minimal_norm.py            # 300 images, l2 and linf, some minutes on 2 cores
    python benchmarks/minimal_norm.py --quick    # 24 images without the reference, no result file

Networks, all trained on digits: one adversarially trained (`checkpoints/digits_conv`), one plain (as
`reports/benchmarks/plain_digits`) and one 1-Lipschitz (`checkpoints/digits_sandwich`); of each the first test images that it gets
right. Excess: an attack's distance over the least that any attack of this run found for the image, less one; the mean is over the
images that the attack broke, `failed` counts the others. FAB of pyautoattack, targeted, joins as a reference for the least only,
at three times the largest least so far. Passes and seconds: means over the images, each attack on all of them at once.
"""

import json
import sys
import time
from typing import Any

import torch
from common import ROOT, arguments, finish, wait
from torch import Tensor, nn

from robustbench_rkhs.attacks import ALMA, DDN, FMN, Attack, AutoAttack, FoolboxAttack, SuperDeepFool
from robustbench_rkhs.attacks.ball import Norm, distances
from robustbench_rkhs.checkpoint import load

NETWORKS = {
    "adversarial": "checkpoints/digits_conv",
    "plain": "reports/benchmarks/plain_digits",
    "lipschitz": "checkpoints/digits_sandwich",
}
ATTACKS: dict[str, dict[str, Attack]] = {
    "l2": {
        "superdeepfool": SuperDeepFool(),
        "ddn": DDN(),
        "ddn cross-entropy": DDN(loss="cross_entropy"),
        "fmn": FMN(),
        "alma": ALMA(),
        "foolbox deepfool": FoolboxAttack(attack="deepfool"),
        "foolbox ddn": FoolboxAttack(attack="ddn"),
        "foolbox ddn 300": FoolboxAttack(attack="ddn", steps=300),
        "foolbox ddn as it is": FoolboxAttack(attack="ddn", rescale=False),
        "foolbox fmn": FoolboxAttack(attack="fmn"),
    },
    "linf": {
        "superdeepfool": SuperDeepFool(),
        "fmn": FMN(),
        "alma": ALMA(),
        "foolbox deepfool": FoolboxAttack(attack="deepfool"),
        "foolbox fmn": FoolboxAttack(attack="fmn"),
    },
}


def images(folder: str, number: int, device: str) -> tuple[nn.Module, Tensor, Tensor, str]:
    """A network, the first test images that it gets right, and what the data set is known by."""
    checkpoint = load(ROOT / folder)
    split, model = checkpoint.recipe.data.load().test, checkpoint.model.to(device)
    x, y = split.x.to(device), split.y.to(device)
    with torch.no_grad():
        right = (model(x).argmax(1) == y).nonzero().flatten()[:number]
    return model, x[right], y[right], split.digest


def alone(device: str) -> bool:
    return torch.device(device).type == "cpu" and torch.get_num_threads() == 1


def clock(device: str) -> float:
    """CPU seconds on one CPU thread, which neighbours on the machine disturb less; wall seconds otherwise."""
    wait(device)
    return time.process_time() if alone(device) else time.perf_counter()


@torch.no_grad()
def reached(model: nn.Module, x: Tensor, y: Tensor, found: Tensor, norm: Norm) -> Tensor:
    """Distances of those that are adversarial and in the box; infinity for the others."""
    fell = (model(found).argmax(1) != y) & (found.flatten(1).amin(1) >= 0) & (found.flatten(1).amax(1) <= 1)
    return torch.where(fell, distances(x, found, norm), torch.inf)


def measure(attack: Attack, model: nn.Module, x: Tensor, y: Tensor, norm: Norm, device: str) -> tuple[Tensor, dict[str, float]]:
    """Distances, and what they cost an image."""
    aimed, keys = attack.aimed(norm=norm, eps=None, seed=0), torch.arange(len(x), device=x.device)
    aimed(model, x[:2], y[:2], keys[:2])  # warm
    started = clock(device)
    attacked = aimed(model, x, y, keys)
    seconds = clock(device) - started
    cost = {"forwards": attacked.forwards.double().mean().item(), "backwards": attacked.backwards.double().mean().item()}
    return reached(model, x, y, attacked.images, norm), cost | {"seconds": seconds / len(x)}


def reference(model: nn.Module, x: Tensor, y: Tensor, least: Tensor, norm: Norm) -> Tensor:
    """FAB's distances: another way to the boundary than any attack measured goes."""
    fab = AutoAttack(version="custom", attacks=("fab-t",), norm=norm, eps=3 * least[least < torch.inf].max().item())
    return reached(model, x, y, fab(model, x, y, torch.arange(len(x), device=x.device)).images, norm)


def main() -> None:
    given = arguments(__doc__)
    number, digests = 24 if given.quick else 300, set()
    figures: dict[str, Any] = {"images": number, "clock": "CPU seconds" if alone(given.device) else "wall seconds"}
    for norm, attacks in ATTACKS.items():
        figures[norm] = {name: {} for name in attacks}
        for network, folder in NETWORKS.items():
            model, x, y, digest = images(folder, number, given.device)
            digests.add(digest)
            found = {name: measure(attack, model, x, y, norm, given.device) for name, attack in attacks.items()}
            least = torch.stack([away for away, _ in found.values()]).amin(0)
            if not given.quick:
                least = torch.minimum(least, reference(model, x, y, least, norm))
            for name, (away, cost) in found.items():
                excess = away / least - 1
                broken = away < torch.inf
                shares = {"excess": excess[broken].mean().item(), "within_1_percent": (excess <= 0.01).double().mean().item()}
                row: dict[str, Any] = shares | {"failed": int((~broken).sum())} | cost
                figures[norm][name][network] = row
                print(json.dumps({"norm": norm, "attack": name, "network": network} | row), file=sys.stderr, flush=True)
    package = sorted((ROOT / "robustbench_rkhs/attacks").glob("*.py"))
    files = ["benchmarks/minimal_norm.py", "benchmarks/common.py", *(str(path.relative_to(ROOT)) for path in package)]
    finish("minimal_norm", figures | {"data_digests": sorted(digests)}, given, files)


if __name__ == "__main__":
    main()
