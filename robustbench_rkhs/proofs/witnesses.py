"""Witnesses of proofs that are made image by image: what is written, once the verifier has accepted it."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from robustbench_rkhs.bounds import Step
from robustbench_rkhs.certificates import SdpCrownCertificate
from robustbench_rkhs.certificates.witness import Stored, witness
from robustbench_rkhs.data import Split
from robustbench_rkhs.lipschitz import affine
from robustbench_rkhs.verifier import build
from robustbench_rkhs.verifier.chain import forward
from robustbench_rkhs.verifier.check import BATCH
from robustbench_rkhs.verifier.claims import Claim, TiltedClaim
from robustbench_rkhs.verifier.proof import Proof


class Written(NamedTuple):
    """What a file says of a network and its images."""

    model: nn.Module
    split: Split
    chain: list[Step]
    rows: list[dict[str, Any]]
    """The network as rows of plain operations."""
    norm: str


def write_witness(number: int, row: dict[str, Any], about: Written, arrays: dict[str, np.ndarray]) -> None:
    """Slopes, multipliers and couplings of every image that they prove; its radius becomes what they prove."""
    if reason := _unwitnessed(about.chain, about.norm):
        row.update(checkable=False, reason=reason)
        return
    asked = arrays[row["radii"]].astype("<f8")
    radius = torch.from_numpy(np.where(np.isfinite(asked), asked, 0.0))
    split = about.split
    found = witness(SdpCrownCertificate(search=False), about.model, split.x, split.y, radius)
    arrays[row["radii"]] = found.radius.numpy()
    counts = _kinks(about.chain)
    entry = _stored(f"witness_{number}", found.balls, counts, arrays)
    if len(found.coupled.rows):
        entry["coupled"] = _stored(f"witness_{number}_coupled", found.coupled, counts, arrays)
    row.update(pairs=None, witness=entry)
    _keep_proved(TiltedClaim(number, row["method"], arrays[row["radii"]], None, entry), about, arrays)
    row["reason"] = _fewer(arrays[row["radii"]], asked)


def _fewer(radii: np.ndarray, asked: np.ndarray) -> str:
    """What is lost of the radii that were asked for; empty if nothing."""
    missing, smaller = int(((radii == 0) & (asked > 0)).sum()), int(((radii > 0) & (radii < asked)).sum())
    if not missing and not smaller:
        return ""
    proved = "what is written proves less than was proved with intervals and parts"
    return f"{proved}: {smaller} of {len(asked)} radii are smaller here, {missing} are missing"


def _keep_proved(claim: Claim, about: Written, arrays: dict[str, np.ndarray]) -> None:
    """Sets the radii to zero that the verifier does not accept."""
    split = about.split
    x, label = split.x.detach().cpu().double().numpy(), split.y.cpu().numpy().astype("<i8")
    proof = Proof({"norm": about.norm}, {**arrays, "images": x, "label": label}, tuple(split.shape), split.classes)
    chain = build.chain(proof, about.rows, tuple(split.shape))
    claim.prove(proof, chain, np.zeros(0))
    for start in range(0, len(x), BATCH):
        part = slice(start, min(start + BATCH, len(x)))
        own, _ = claim.found(proof, chain, part, x[part], forward(chain, x[part]))
        claim.radii[part] = np.minimum(claim.radii[part], own)


def _stored(name: str, part: Stored, counts: list[int], arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The arrays of some rows, by name."""
    entry: dict[str, Any] = {"rows": f"{name}_rows", "multipliers": f"{name}_multipliers"}
    arrays[entry["rows"]] = part.rows.numpy().astype("<i8").reshape(-1, 2)
    arrays[entry["multipliers"]] = part.multipliers.reshape(len(part.rows), len(counts)).numpy()
    entry["slopes"] = _each(f"{name}_slopes", part.slopes or [torch.zeros(0, count) for count in counts], arrays)
    if part.pushes:
        entry["pushes"] = _each(f"{name}_pushes", part.pushes, arrays)
        entry["scales"] = _each(f"{name}_scales", part.scales, arrays)
        entry["norms"] = f"{name}_norms"
        arrays[entry["norms"]] = part.norms.numpy()
    return entry


def _each(name: str, parts: list[torch.Tensor], arrays: dict[str, np.ndarray]) -> list[str]:
    arrays |= {f"{name}_{kink}": part.numpy() for kink, part in enumerate(parts)}
    return [f"{name}_{kink}" for kink in range(len(parts))]


def _unwitnessed(chain: list[Step], norm: str) -> str:
    """Why linear bounds of this network cannot be re-checked; empty if they can."""
    if norm != "l2":
        return "its linear bounds are re-checked in l2 alone"
    for step in chain:
        module = step.module
        inner = next(filter(None, (_unwitnessed(branch, norm) for branch in step.branches)), "")
        if inner:
            return inner
        bent = isinstance(module, nn.ReLU) or (isinstance(module, nn.LeakyReLU) and 0 <= module.negative_slope <= 1)
        if not step.branches and not affine(module) and not bent:
            return f"linear bounds through {type(module).__name__} ({step.path}) are not re-checked"
    return ""


def _kinks(chain: list[Step]) -> list[int]:
    """The number of values at each ReLU, in order."""
    found: list[int] = []
    for step in chain:
        for branch in step.branches:
            found += _kinks(branch)
        if isinstance(step.module, nn.ReLU | nn.LeakyReLU):
            found.append(math.prod(step.inputs))
    return found
