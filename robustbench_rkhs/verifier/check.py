"""Check of a proof: bounds, logits and radii are recomputed and compared with the claims."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import build, weights
from .chain import Branches, forward, pairs
from .claims import SLACK, Claim, RelaxedClaim, TiltedClaim
from .norms import Unproved
from .operations import Operation, expected
from .proof import Proof, Rejected, number, read

BATCH = 64
METHODS = ("margin", "liplt", "eclipse", "sdp_crown", "crown", "alpha_crown", "ibp")
"""Certificates that are re-checked."""
KEYS = {"method", "checkable", "reason", "radii", "pairs", "witness"}


@dataclass(frozen=True)
class Verdict:
    """Result of a successful check."""

    proof: Proof
    index: np.ndarray
    radius: np.ndarray
    """The radius proved here, at most the claimed one, per checked image."""
    layers: list[tuple[str, float | None, float]]
    """Operation, claimed bound and recomputed bound."""
    notes: list[str] = field(default_factory=list)


def verify(folder: str | Path, samples: int | None = None, checkpoint: str | Path | None = None) -> Verdict:
    """Re-checks the proof in a folder. Raises Rejected with the first reason, Malformed if it is not a proof."""
    proof = read(Path(folder))
    about = proof.about
    notes = [] if checkpoint is None else [weights.check(proof, Path(checkpoint))]
    expected(about["norm"] in ("l2", "linf"), f"expected norm l2 or linf, found {about['norm']!r}")
    expected(about.get("box", "none") in ("none", "unit"), f"expected box none or unit, found {about.get('box')!r}")
    x, label = proof.array("images"), proof.array("label")
    count = len(x)
    expected(x.shape[1:] == proof.shape and x.dtype.kind == "f" and count >= 1, "images do not have the proof's shape")
    for name in ("index", "label"):
        expected(proof.array(name, count).dtype.kind == "i", f"{name} does not hold whole numbers")
    expected(0 <= int(label.min()) <= int(label.max()) < proof.classes, "labels do not fit the classes")
    digests = about["images"]
    expected(isinstance(digests, list) and len(digests) == count, "expected one sha256 per image")
    for image, digest, index in zip(x, digests, proof.array("index"), strict=True):
        if hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest() != digest:
            raise Rejected(f"image {index}: its sha256 does not fit")
    claims = _claims(proof, count, notes)
    expected(about["adversarial"] == [], "adversarial images are not part of this version")  # a later version checks them here
    chain = build.chain(proof, about["layers"], proof.shape)
    notes += [] if checkpoint is None else [weights.check_function(proof, chain, Path(checkpoint))]
    layers = bounds(chain, about["layers"])
    simple = pairs(chain, proof.classes)
    for claim in claims:
        claim.prove(proof, chain, simple)
    looked = count if samples is None else min(samples, count)
    radius = _radii(proof, chain, claims, looked)
    best = _best(proof, claims, count)[:looked]
    for claim in claims if len(claims) > 1 else []:
        notes.append(f"{claim.method}: {int((best == claim.number).sum())} of the largest radii")
    return Verdict(proof, proof.array("index")[:looked], radius, layers, notes)


def _claims(proof: Proof, count: int, notes: list[str]) -> list[Claim]:
    """The certificates that can be re-checked; adds a note for each other one."""
    rows = proof.about["certificates"]
    expected(isinstance(rows, list) and all(isinstance(row, dict) for row in rows), "expected a list of certificates")
    claims = []
    for place, row in enumerate(rows):
        expected(set(row) == KEYS, f"a certificate has the keys {sorted(row)}")
        radii = proof.numbers(row["radii"], count)
        if row["checkable"] is not True:
            notes.append(f"not re-checked: {row['method']} ({row['reason']})")
            continue
        known = isinstance(row["method"], str) and row["method"].partition("#")[0] in METHODS
        expected(known, f"there is no re-check of certificate {row['method']!r}")
        if row["reason"]:
            notes.append(f"{row['method']}: {row['reason']}")
        name = row["method"].partition("#")[0]
        tilted = name == "sdp_crown" and row["witness"] != []
        kind = TiltedClaim if tilted else Claim if name in ("margin", "liplt", "eclipse") else RelaxedClaim
        claims.append(kind(place, row["method"], radii, row["pairs"], row["witness"]))
    expected(bool(claims), "there is no certificate to re-check")
    return claims


def _best(proof: Proof, claims: list[Claim], count: int) -> np.ndarray:
    """The certificate with the largest radius per image. Raises Rejected if the proof names another one."""
    radii, numbers = np.stack([claim.radii for claim in claims]), np.array([claim.number for claim in claims])
    found = np.where(radii.max(0) > 0, numbers[radii.argmax(0)], -1)
    for at in np.nonzero(found != proof.array("best", count))[0]:
        raise Rejected(f"image {proof.array('index')[at]}: its largest radius is not by certificate {proof.array('best')[at]}")
    return found


def bounds(chain: Sequence[Operation], rows: list[dict[str, Any]]) -> list[tuple[str, float | None, float]]:
    """Claimed and recomputed bound per layer, branches included. Raises Rejected if a claim is too small."""
    found = []
    for operation, row in zip(chain, rows, strict=True):
        if isinstance(operation, Branches):
            for part, entries in zip(operation.chains, row["branches"], strict=True):
                found += bounds(part, entries)
        claimed = None if row["bound"] is None else number(row["bound"], "bound")
        name = f"{row['layer']} ({row['operation']})"
        try:
            own = operation.bound
        except Unproved as refused:
            raise Rejected(f"layer {name}: {refused}") from None
        if claimed is not None and not own <= claimed * (1 + SLACK):
            raise Rejected(f"layer {name}: claimed bound {claimed:.9g}, re-checked {own:.9g}")
        found.append((name, claimed, own))
    return found


def _radii(proof: Proof, chain: Sequence[Operation], claims: list[Claim], looked: int) -> np.ndarray:
    """Recomputed radii, at most those claimed. Raises Rejected at the first image whose claim is larger."""
    x, index = (proof.array(name)[:looked] for name in ("images", "index"))
    count = len(proof.array("images"))
    claimed_logits, claimed_error = proof.numbers("logits", count, proof.classes), proof.numbers("error", count)
    best = np.zeros(looked)
    for start in range(0, looked, BATCH):
        part = slice(start, min(start + BATCH, looked))
        with np.errstate(all="ignore"):  # what is not finite is found below
            logits, error = forward(chain, x[part].astype(np.float64))
            apart = np.sqrt(((logits - claimed_logits[part]) ** 2).sum(1))
            fits = apart <= (error + claimed_error[part]) * (1 + 1e-6)
            found = [one.found(proof, chain, part, x[part].astype(np.float64), (logits, error)) for one in claims]
        finite = np.isfinite(logits).all(1) & np.isfinite(x[part]).all(axis=tuple(range(1, x.ndim)))
        for at in range(len(logits)):
            where = f"image {index[start + at]}"
            if finite[at] and not fits[at]:
                raise Rejected(f"{where}: its claimed logits are not the network's")
            for claim, (own, why) in zip(claims, found, strict=True):
                if not finite[at]:
                    own[at], why[at] = 0.0, "image or logits are not finite"
                value = claim.radii[start + at]
                if not value >= 0:
                    raise Rejected(f"{where}: expected a radius of at least 0, {claim.method} claims {value}")
                if not value <= own[at] * (1 + SLACK):
                    words = why[at] or f"re-checked {rounded(own[at])}"
                    raise Rejected(f"{where}: {claim.method} claims radius {value:.6g}, {words}")
                best[start + at] = max(best[start + at], min(value, own[at]))
    return best


def rounded(value: float) -> str:
    """Four decimals, rounded down."""
    return "infinite" if math.isinf(value) else f"{math.floor(value * 1e4) / 1e4:.4f}"
