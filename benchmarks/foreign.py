"""What sdp_crown proves on networks of others, beside published figures; resumable, image by image.

    python benchmarks/foreign.py                                  # every case, all 200 images
    python benchmarks/foreign.py --case mnist_mlp --images 50     # one case on its first images; run again, it goes on

Needs the foreign networks in RKHS_FOREIGN (default ../shared/foreign); without them it says so and ends. Each image's row is
appended to reports/benchmarks/foreign.jsonl as soon as it is known and never computed again, as long as the sources of the
proof and its settings are the same; reports/benchmarks/foreign.json sums them up. One thread.
Seconds are of the process, for certificates alone.

For each image: `margin` and `liplt` first, then PGD (3 starts, 50 steps, in the ball), then `sdp_crown` on what is right, not
proved and not broken. Around every image that sdp_crown proves: 20 random starts of 50 steps and DDN at the claimed radius,
counted as `violations`. The shipped digits networks alike, in the ball and the box as an evaluation asks it. Two rows in linf
(`_linf`), on the first 100 images, in the box, where DDN is left out.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import foolbox
import numpy as np
import torch
from common import ROOT, sources_digest, stamp
from torch import Tensor, nn

from robustbench_rkhs.certificates import Certificate, LipLTCertificate, MarginCertificate, SdpCrownCertificate
from robustbench_rkhs.nodes.threat_model import Norm
from robustbench_rkhs.training.checkpoint import load

FOREIGN = Path(os.environ.get("RKHS_FOREIGN", ROOT.parent / "shared" / "foreign"))
ROWS = ROOT / "reports" / "benchmarks" / "foreign.jsonl"
LIMIT = 48.0
"""Seconds of each of an image's two searches (couplings, branch and bound), by the clock on the wall: with what comes before and
the proofs, at most 120."""
SOURCES = sorted(
    str(path.relative_to(ROOT))
    for folder in ("certificates", "relaxations", "bounds", "lipschitz")
    for path in (ROOT / "robustbench_rkhs" / folder).glob("*.py")
)


class Case(NamedTuple):
    """A network, its images and the radius asked for."""

    key: str
    network: str
    images: str
    eps: float
    box: str = "none"
    published: float | None = None
    """Certified percent of all 200 images by SDP-CROWN (ICML 2025)."""
    norm: Norm = "l2"
    images_at_most: int = 200


CASES = (
    Case("mnist_mlp", "mnist_mlp", "sdp_mnist", 1.0, published=32.5),
    Case("mnist_convsmall", "mnist_convsmall", "sdp_mnist", 0.3, published=81.5),
    Case("cifar_cnn_a", "cifar_cnn_a", "sdp_cifar", 24 / 255, published=49.0),
    Case("cifar_convsmall", "cifar_convsmall", "sdp_cifar", 24 / 255),
    *(
        Case(f"{name}_open_{label}", name, "digits", eps, "unit")
        for name in ("digits_mlp", "digits_conv")
        for label, eps in (("025", 0.25), ("05", 0.5))
    ),
    Case("kw_mnist_linf", "kw_mnist", "sdp_mnist", 0.1, "unit", norm="linf", images_at_most=100),
    Case("resnet2b_linf", "resnet2b", "sdp_cifar", 2 / 255, "unit", norm="linf", images_at_most=100),
)


def opened(case: Case) -> tuple[nn.Module, Tensor, Tensor]:
    if case.images == "digits":
        loaded = load(ROOT / "checkpoints" / case.network)
        test = loaded.recipe.data.test().sample(200, 0)
        return loaded.model.eval(), test.x, test.y
    sys.path.insert(0, str(FOREIGN))
    stored = np.load(FOREIGN / f"{case.images}.npz")
    model = getattr(__import__("nets"), case.network)()
    return model.eval(), torch.tensor(stored["x_test"]).permute(0, 3, 1, 2).float(), torch.tensor(stored["y_test"]).long()


def attacked(model: nn.Module, x: Tensor, label: int, case: Case, starts: int, steps: int = 50) -> bool:
    """PGD on the margin, in float64, within the closed ball (and the box)."""
    double, x, eps, box, square = model.double(), x.double(), case.eps, case.box, case.norm == "linf"
    generator = torch.Generator().manual_seed(0)
    d = torch.randn(starts, *x.shape, dtype=torch.float64, generator=generator)
    d = eps * d.sign() if square else eps * d / d.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    labels, broken = torch.full((starts, 1), label), False
    for step in range(steps):
        at = (x + d).clamp(0, 1) if box == "unit" else x + d
        z = double(at.requires_grad_())
        gap = z.gather(1, labels)[:, 0] - z.scatter(1, labels, -torch.inf).amax(1)
        inside = (at.detach() - x).flatten(1).norm(math.inf if square else 2, dim=1) <= eps
        broken |= bool(((gap <= 0) & inside).any())
        (slope,) = torch.autograd.grad(gap.sum(), at)
        move = slope.sign() if square else slope / slope.flatten(1).norm(dim=1).clamp_min(1e-300).view(-1, 1, 1, 1)
        d = at.detach() - x - eps * (0.52 - 0.5 * step / steps) * move
        inner = eps * (1 - 1e-12)
        d = d.clamp(-inner, inner) if square else d * (inner / d.flatten(1).norm(dim=1)).clamp(max=1).view(-1, 1, 1, 1)
    model.float()
    return broken


def ddn_within(model: nn.Module, x: Tensor, label: int, eps: float) -> bool:
    """foolbox's DDN (minimal norm, in the box): whether it ends closer than the claim."""
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    _, found, success = foolbox.attacks.DDNAttack(steps=100)(wrapped, x[None].clamp(0, 1), torch.tensor([label]), epsilons=None)
    return bool(success) and float((found.double() - x.double()).norm()) <= eps and int(model(found).argmax()) != label


def rows(case: Case, images: int, known: set[int]) -> Iterator[dict[str, Any]]:
    model, x, y = opened(case)
    plain: tuple[Certificate, ...] = (MarginCertificate(norm=case.norm), LipLTCertificate(norm=case.norm))
    method = SdpCrownCertificate(search=False, box=case.box, norm=case.norm, seconds=LIMIT)
    for i in range(min(images, case.images_at_most, len(x))):
        if i in known:
            continue
        one, label, keys = x[i : i + 1], y[i : i + 1], torch.tensor([i])
        row: dict[str, Any] = {"case": case.key, "eps": case.eps, "image": i, "right": int(model(one).argmax()) == int(label)}
        row["plain"] = row["right"] and any(float(c(model, one, label, keys, (case.eps,)).radius) >= case.eps for c in plain)
        row["broken"] = row["right"] and not row["plain"] and attacked(model, x[i], int(label), case, 3)
        begun = time.process_time()
        row["open"] = row["right"] and not row["plain"] and not row["broken"]
        row["sdp_crown"] = row["open"] and float(method(model, one, label, keys, (case.eps,)).radius) >= case.eps
        row["seconds"] = round(time.process_time() - begun, 2)
        if row["sdp_crown"]:
            found = attacked(model, x[i], int(label), case, 20)
            row["violation"] = found or (case.norm == "l2" and ddn_within(model, x[i], int(label), case.eps))
        yield row


def summed(found: list[dict[str, Any]], case: Case) -> dict[str, Any]:
    count = len(found)
    share = lambda key: 100 * sum(bool(row.get(key)) for row in found) / max(count, 1)  # noqa: E731
    seconds = [row["seconds"] for row in found if row["open"]]
    proved = share("plain") + share("sdp_crown")
    return {
        "images": count,
        "sources": found[-1]["sources"] if found else "",
        "eps": case.eps,
        "right": round(share("right"), 1),
        "margin_or_liplt": round(share("plain"), 1),
        "certified": round(proved, 1),
        "open": round(share("open") - share("sdp_crown"), 1),
        "published": case.published,
        "seconds_per_open_image": round(sum(seconds) / max(len(seconds), 1), 2),
        "seconds_at_most": max(seconds, default=0.0),
        "violations": sum(bool(row.get("violation")) for row in found),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="*", choices=[case.key for case in CASES], default=[case.key for case in CASES])
    parser.add_argument("--images", type=int, default=200)
    given = parser.parse_args()
    torch.set_num_threads(1)
    sources = f"{sources_digest(SOURCES)[:16]}-{LIMIT:g}"
    stored = [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.is_file() else []
    ROWS.parent.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        if case.key not in given.case:
            continue
        if case.images != "digits" and not (FOREIGN / "nets.py").is_file():
            print(f"{case.key}: skipped, there are no foreign networks in {FOREIGN.name} (RKHS_FOREIGN)")
            continue
        known = {row["image"] for row in stored if row["case"] == case.key and row["sources"] == sources}
        with ROWS.open("a") as file:
            for row in rows(case, given.images, known):
                row |= {"sources": sources}
                stored.append(row)
                file.write(json.dumps(row) + "\n")
                file.flush()
        here = [row for row in stored if row["case"] == case.key and row["sources"] == sources]
        print(case.key, json.dumps(summed(here, case)), flush=True)
    figures = {}
    for case in CASES:
        newest = [row for row in stored if row["case"] == case.key]
        here = [row for row in newest if row["sources"] == newest[-1]["sources"]] if newest else []
        if here:
            figures[case.key] = summed(here, case)
    heads = {key: one["open" if "_open_" in key else "certified"] for key, one in figures.items()}
    record = {"benchmark": "foreign", **heads, "violations": sum(one["violations"] for one in figures.values()), "cases": figures}
    record |= {"seconds_of_a_search": LIMIT}
    record |= {"command": "python " + " ".join(sys.argv), **stamp(SOURCES, "cpu")}
    (ROWS.parent / "foreign.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps({key: record[key] for key in (*heads, "violations", "machine", "date")}))


if __name__ == "__main__":
    main()
