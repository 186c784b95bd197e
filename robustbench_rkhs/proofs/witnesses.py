"""Witnesses of proofs that are made image by image: what is written, once the verifier has accepted it."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from robustbench_rkhs.bounds import Step
from robustbench_rkhs.certificates import SdpCrownCertificate
from robustbench_rkhs.certificates.stored import Stored
from robustbench_rkhs.certificates.witness import SMALLER, witness
from robustbench_rkhs.data import Split
from robustbench_rkhs.lipschitz import affine
from robustbench_rkhs.nodes.threat_model import Box, Norm
from robustbench_rkhs.runtime.clock import ask
from robustbench_rkhs.verifier import build
from robustbench_rkhs.verifier.chain import forward
from robustbench_rkhs.verifier.check import BATCH
from robustbench_rkhs.verifier.claims import Claim, RelaxedClaim, TiltedClaim
from robustbench_rkhs.verifier.operations import Malformed
from robustbench_rkhs.verifier.proof import Proof

RELAXED = ("sdp_crown", "crown", "alpha_crown", "ibp")
"""Certificates that are proved image by image."""
SEARCH = SdpCrownCertificate(search=False)
"""Finds what is written."""
LARGEST = 2**28
"""Most bytes of proofs in parts."""
MOST = 10_000
"""Most values at kinks for which lines are computed anew, in NumPy."""


class Written(NamedTuple):
    """What a file says of a network and its images."""

    model: nn.Module
    split: Split
    chain: list[Step]
    rows: list[dict[str, Any]]
    """The network as rows of plain operations."""
    norm: Norm
    box: Box = "none"
    """`unit`: radii are about images in [0, 1] alone."""


def write_witness(number: int, row: dict[str, Any], about: Written, arrays: dict[str, np.ndarray]) -> None:
    """What proves the radii again; they become what is proved so. One that cannot be re-checked for this network is only listed."""
    asked, more = arrays[row["radii"]].astype("<f8"), ""
    arrays[row["radii"]] = np.where(np.isfinite(asked), asked, 0.0)
    try:
        if row["method"].partition("#")[0] == "sdp_crown" and not _untilted(about.chain, about.norm):
            more = _tilted(number, row, about, arrays)
        else:
            row.update(pairs=None, witness=[])
            _relaxed(RelaxedClaim(number, row["method"], arrays[row["radii"]], None, []), about, arrays)
    except Malformed as refused:
        arrays[row["radii"]] = asked
        row.update(checkable=False, reason=f"it is not re-checked for this network: {refused}", witness=None)
        return
    row["reason"] = _fewer(arrays[row["radii"]], asked) + more


def _tilted(number: int, row: dict[str, Any], about: Written, arrays: dict[str, np.ndarray]) -> str:
    """Slopes, multipliers and couplings of every image that they prove; what is left out, in words."""
    split, radius = about.split, torch.from_numpy(arrays[row["radii"]])
    found = witness(SEARCH.model_copy(update={"box": about.box}), about.model, split.x, split.y, radius, LARGEST)
    arrays[row["radii"]] = found.radius.numpy()
    counts, entry = _kinks(about.chain), dict[str, Any]()
    for kind, stored in found.stored.items():
        if kind == "balls":
            entry |= _stored(f"witness_{number}", stored, counts, arrays)
        elif len(stored.rows):
            entry[kind] = _stored(f"witness_{number}_{kind}", stored, counts, arrays, "parts" in kind)
    row.update(pairs=None, witness=entry)
    claim = TiltedClaim(number, row["method"], arrays[row["radii"]], None, entry)
    claim.radii[:] = _proved(claim, about, arrays)
    if not found.left_out:
        return ""
    return f"; proofs in parts of {found.left_out} images are left out: more than {LARGEST // 2**20} MiB"


def _relaxed(claim: RelaxedClaim, about: Written, arrays: dict[str, np.ndarray]) -> None:
    """The largest share of each radius that the verifier proves."""
    values = _bent(about.chain)
    if values > MOST and not claim.method.startswith("ibp"):
        raise Malformed(f"{values:,} values at kinks, and each costs passes: at most {MOST:,} are re-checked")
    asked, best = claim.radii.copy(), np.zeros_like(claim.radii)
    for share in SMALLER:
        ask()
        claim.radii[:] = np.where(best > 0, 0.0, asked * share)
        if not claim.radii.any():
            break
        best = np.maximum(best, _proved(claim, about, arrays))
    claim.radii[:] = best


def _fewer(radii: np.ndarray, asked: np.ndarray) -> str:
    """What is lost of the radii that were asked for; empty if nothing."""
    missing, smaller = int(((radii == 0) & (asked > 0)).sum()), int(((radii > 0) & (radii < asked)).sum())
    if not missing and not smaller:
        return ""
    return f"of {len(asked)} radii, {smaller} are smaller than evaluated and {missing} are missing: this much is proved again"


def _proved(claim: Claim, about: Written, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The radii that the verifier accepts, else 0."""
    split = about.split
    x, label = split.x.detach().cpu().double().numpy(), split.y.cpu().numpy().astype("<i8")
    proof = Proof(
        {"norm": about.norm, "box": about.box}, {**arrays, "images": x, "label": label}, tuple(split.shape), split.classes
    )
    chain = build.chain(proof, about.rows, tuple(split.shape))
    claim.prove(proof, chain, np.zeros(0))
    parts = [slice(start, min(start + BATCH, len(x))) for start in range(0, len(x), BATCH)]
    return np.concatenate([claim.found(proof, chain, part, x[part], forward(chain, x[part]))[0] for part in parts])


def _stored(name: str, part: Stored, counts: list[int], arrays: dict[str, np.ndarray], parts: bool = False) -> dict[str, Any]:
    """The arrays of some rows, by name; `parts`: with the splits of each."""
    entry: dict[str, Any] = {"rows": f"{name}_rows", "multipliers": f"{name}_multipliers"}
    arrays[entry["rows"]] = part.rows.numpy().astype("<i8").reshape(-1, 2)
    arrays[entry["multipliers"]] = part.multipliers.reshape(len(part.part_of), len(counts)).numpy()
    if parts:
        entry |= {"part_of": f"{name}_part_of", "splits": f"{name}_splits"}
        arrays[entry["part_of"]], arrays[entry["splits"]] = part.part_of.numpy().astype("<i8"), part.splits.numpy().astype("<i8")
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


def _untilted(chain: list[Step], norm: str) -> bool:
    """Whether the network has no bounds from balls alone: in linf, or with other kinks than ReLUs."""
    for step in chain:
        module = step.module
        bent = isinstance(module, nn.ReLU) or (isinstance(module, nn.LeakyReLU) and 0 <= module.negative_slope <= 1)
        other = not step.branches and not affine(module) and not bent
        if other or any(_untilted(branch, norm) for branch in step.branches):
            return True
    return norm != "l2"


def _bent(chain: list[Step]) -> int:
    """The number of values that enter operations that are not affine."""
    own = [math.prod(step.inputs) for step in chain if not step.branches and not affine(step.module)]
    return sum(own) + sum(_bent(branch) for step in chain for branch in step.branches)


def _kinks(chain: list[Step]) -> list[int]:
    """The number of values at each ReLU, in order."""
    found: list[int] = []
    for step in chain:
        for branch in step.branches:
            found += _kinks(branch)
        if isinstance(step.module, nn.ReLU | nn.LeakyReLU):
            found.append(math.prod(step.inputs))
    return found
