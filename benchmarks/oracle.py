"""Our ensemble against the package of AutoAttack's authors, image by image: three networks, three epsilons.

    python benchmarks/oracle.py            # 100 images, some minutes on one core
    python benchmarks/oracle.py --quick    # 20 images

The digits networks of attacks.py (adversarially trained, plain, 1-Lipschitz), l2, each at its standard version, every eps
on its own. Of the images that are right: how many both leave standing, both break, and each breaks alone. Writes
reports/benchmarks/oracle.json and oracle.md. pyautoattack's runs of attack_peers.py are used where they are kept.
"""

import time
from typing import Any

import attack_peers
import torch
from attack_networks import images, network
from common import ROOT, arguments, finish
from torch import Tensor, nn

from robustbench_rkhs.attacks import Ensemble
from robustbench_rkhs.layers.frozen import freeze

EPSILONS = (0.3, 0.5, 0.7)
KEPT = 300
"""Images of the runs that attack_peers.py keeps; a smaller sample lies inside."""


def theirs(name: str, model: nn.Module, x: Tensor, y: Tensor, index: list[int], eps: float) -> list[bool]:
    """Which images stand after pyautoattack: kept, or run now."""
    whole = images(KEPT)
    held = {run["eps"]: run["stands"] for run in attack_peers.kept(name, whole.digest, KEPT)}
    if eps in held:
        where = whole.index.tolist()
        return [held[eps][where.index(one)] == "1" for one in index]
    return [one == "1" for one in attack_peers.autoattack(model, x, y, eps)["stands"]]


def main() -> None:
    given = arguments(__doc__ or "")
    test, rows = images(20 if given.quick else 100), []
    for name in ("adv", "std", "lip"):
        model = freeze(network(name))
        with torch.no_grad():
            right = (model(test.x).argmax(1) == test.y).tolist()
        for eps in EPSILONS:
            started = time.process_time()
            found = Ensemble(eps=eps)(model, test.x, test.y, test.index)
            seconds = time.process_time() - started
            with torch.no_grad():
                ours = (model(found.images).argmax(1) == test.y).tolist()
            peer = theirs(name, model, test.x, test.y, test.index.tolist(), eps)
            pairs = [(a, b) for a, b, fine in zip(ours, peer, right, strict=True) if fine]
            rows.append(
                {
                    "network": name,
                    "eps": eps,
                    "right": len(pairs),
                    "both stand": pairs.count((True, True)),
                    "both broken": pairs.count((False, False)),
                    "broken by ours alone": pairs.count((False, True)),
                    "broken by pyautoattack alone": pairs.count((True, False)),
                    "seconds": round(seconds, 1),
                }
            )
            print(rows[-1], flush=True)
    alone = max(row["broken by pyautoattack alone"] for row in rows)
    figures: dict[str, Any] = {"images": len(test), "data": test.digest, "seed": 0, "broken_by_peer_alone": alone, "rows": rows}
    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "robustbench_rkhs" / "attacks").glob("*.py"))
    if not given.quick:
        head = [key for key in rows[0] if key != "seconds"]
        lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
        lines += ["| " + " | ".join(str(row[key]) for key in head) + " |" for row in rows]
        note = f"\n{len(test)} digits test images, l2; `python benchmarks/oracle.py`; details in oracle.json."
        (ROOT / "reports" / "benchmarks" / "oracle.md").write_text("\n".join(lines) + "\n" + note + "\n")
    finish("oracle", figures, given, ["benchmarks/oracle.py", *sources])


if __name__ == "__main__":
    main()
