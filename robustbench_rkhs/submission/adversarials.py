"""Checks of a submitted file of adversarial images: every claim is verified per image against the data and the model."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_rkhs.attacks.counted import answered
from robustbench_rkhs.evaluation.predictions import counting
from robustbench_rkhs.identity import Identity, identity_of
from robustbench_rkhs.layers.frozen import freeze
from robustbench_rkhs.networks.smoothed import Smoothed
from robustbench_rkhs.nodes.limits import STRANGERS, Limits
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.paths import find_checkpoint, find_recipe
from robustbench_rkhs.runtime.precision import full_precision
from robustbench_rkhs.verdicts import Adversarials
from robustbench_rkhs.zoo import SETS, NamedModel, load_model, smoothed

CLOSE = 1e-9
"""Relative tolerance for claimed distances: well above the error of summing the same float64 numbers in another order."""


@dataclass(frozen=True)
class Judged:
    """The result of checking a file of adversarial images: per image the reason for refusal, empty if it is confirmed."""

    stored: Adversarials
    named: NamedModel
    identity: Identity
    """Identity of the model that was queried."""
    reasons: list[str]
    distance_l2: np.ndarray
    """Computed here; used in place of the file's."""
    distance_linf: np.ndarray

    @property
    def confirmed(self) -> np.ndarray:
        return np.array([reason == "" for reason in self.reasons], dtype=bool)

    def lines(self, shown: int = 10) -> list[str]:
        """A summary in a few lines, with at most `shown` refused images."""
        about, fine = self.stored.about, self.confirmed
        away = (self.distance_l2 if about.norm == "l2" else self.distance_linf)[fine]
        lines = [f"{self.named.name} on {self.named.test.data} {self.named.test.split}, {about.norm}, box {about.box}"]
        lines.append(f"  images     {len(fine)}: {fine.sum()} confirmed, {(~fine).sum()} refused")
        if len(away):
            lines.append(f"  distances  {away.min():.6g} to {away.max():.6g}, median {np.median(away):.6g}, as computed here")
        refused = np.flatnonzero(~fine)
        for place in refused[:shown]:
            where = f"{self.stored.index[place]} ({self.stored.method[place]})"
            lines.append(f"  refused    image {where}: {self.reasons[place]}")
        return lines + ([f"  refused    {len(refused) - shown} more"] if len(refused) > shown else [])


def named_by(
    stored: Adversarials,
    model: str | None = None,
    weights: str | None = None,
    data: str | None = None,
    limits: Limits = STRANGERS,
) -> NamedModel:
    """The model and data that a file names, or those given. Raises UserError if they cannot be found.

    The header is untrusted: it may name a local checkpoint and a known data set, but never a path or code.
    """
    name, _, _ = stored.about.model.partition("~")
    if model is None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
        raise UserError(f"the file names the model {name[:40]!r}, which is not a checkpoint name: give one with --model")
    if model is None:
        (find_checkpoint if weights is None else find_recipe)(name)  # no other file here, and no word about one
    named = load_model(model or name, weights, data)
    if data is None and stored.about.data != named.test.data and stored.about.data in SETS:
        named = load_model(model or name, weights, stored.about.data)
    settings = stored.about.others.get("smoothed")
    if settings is None:
        return named
    found = re.fullmatch(r"sigma=(\d[0-9.]*(?:e[+-]?\d+)?), votes=(\d+), recount=(\d+), seed=(\d+)", str(settings))
    if not found:
        raise UserError(f"the file gives smoothing settings {str(settings)[:60]!r}: expected sigma, votes, recount and seed")
    try:
        sigma, votes, recount, seed = float(found[1]), *map(int, found.groups()[1:])
    except ValueError:
        raise UserError(f"the file gives the noise sigma {found[1][:20]!r}, which is not a number") from None
    if not 0 < votes <= 100_000 or not 0 < recount <= 100_000 or not seed < 2**63:
        raise UserError(
            f"the file asks for {str(votes)[:20]} and {str(recount)[:20]} votes: expected 1 to 100000, and a seed of 63 bits"
        )
    if (total := len(stored.index) * (votes + 2 * recount)) > limits.votes:
        raise UserError(f"the file asks for {total:,} votes on its images, expected at most {limits.votes:,} (--limits votes=...)")
    if not 0 < sigma < 100:
        raise UserError(f"the file gives the noise sigma {sigma:g}: expected a value above 0 and below 100")
    return smoothed(named, sigma, votes=votes, recount=recount, seed=seed)


def judge(stored: Adversarials, named: NamedModel, device: str = "cpu") -> Judged:
    """Check each image against the data and the model's predictions: confirmed, or refused with the first false claim.

    An image counts as misclassified if the model errs on it in a batch or alone: the two differ in the last bits, and such
    images lie near the decision boundary. Raises UserError if shapes, types or indices do not match the data.
    """
    about, split = stored.about, named.test
    place = {index: number for number, index in enumerate(split.index.tolist())}
    beyond = [index for index in stored.index.tolist() if index not in place]
    if beyond:
        raise UserError(f"not adversarial images of {split.data} {split.split}: it has no image with index {beyond[0]}")
    if stored.images.shape[1:] != split.shape:
        raise UserError(f"not adversarial images of {split.data}: shape {stored.images.shape[1:]}, expected {split.shape}")
    clean = split.take(torch.tensor([place[index] for index in stored.index.tolist()], dtype=torch.int64))
    if str(stored.images.dtype) != str(clean.x.dtype).removeprefix("torch."):
        raise UserError(f"not adversarial images of {split.data}: {stored.images.dtype}, the data are {clean.x.dtype}")
    faults: list[tuple[np.ndarray, Callable[[int], str]]] = []

    def fault(where: Any, reason: Callable[[int], str]) -> None:
        faults.append((np.broadcast_to(where, len(stored.index)), reason))

    identity = identity_of(named.model, split.shape)
    for what, said, found in (
        ("weights", about.weights, identity.weights),
        ("model", about.others.get("key", identity.key), identity.key),
        ("data", about.data_digest, split.digest),
        ("split", about.split, split.split),
    ):
        fault(said != found, lambda _, what=what, said=said, found=found: _says(f"{what} {found[:12]}", str(said)[:12]))  # type: ignore[misc]
    expected = np.array([hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in clean.x.contiguous()], dtype=np.str_)
    labels = clean.y.numpy()
    fault(stored.input_sha256 != expected, lambda i: _says(f"clean image {expected[i][:12]}", stored.input_sha256[i][:12]))
    fault(stored.label != labels, lambda i: _says(f"label {labels[i]}", stored.label[i]))
    flat = stored.images.reshape(len(expected), prod(split.shape))
    if split.box == "none" and about.box == "unit":
        fault(True, lambda _: _says("box none", "unit"))
    if about.box == "unit":
        fault(~((flat >= 0) & (flat <= 1)).all(1), lambda i: f"pixels from {flat[i].min():.6g} to {flat[i].max():.6g} leave [0, 1]")
    lengths = _lengths(flat, clean.x.numpy().reshape(flat.shape))
    for name, length in lengths.items():
        claimed, word = getattr(stored, name), name.replace("_", " ")
        wide = ~(np.abs(claimed - length) <= CLOSE * length)
        fault(wide, lambda i, word=word, length=length, claimed=claimed: _says(f"{word} {length[i]:.9g}", f"{claimed[i]:.9g}"))  # type: ignore[misc]
    moved = torch.from_numpy(stored.images.copy())
    model = freeze(named.model.eval().to(device))
    before = _asked(model, clean.x, torch.from_numpy(stored.predicted.copy()), device)
    after = _asked(counting(model), moved, torch.from_numpy(stored.predicted_adversarial.copy()), device)
    fault(before != stored.predicted, lambda i: _says(f"the model predicts {before[i]} on the clean image", stored.predicted[i]))
    wrong = (after != labels) | _lost(model, moved, clean.y, device)
    fault(~wrong, lambda i: f"the model predicts its label {labels[i]}")
    fault(after != stored.predicted_adversarial, lambda i: _says(f"the model predicts {after[i]}", stored.predicted_adversarial[i]))
    reasons = [next((reason(i) for where, reason in faults if where[i]), "") for i in range(len(expected))]
    return Judged(stored, named, identity, reasons, lengths["distance_l2"], lengths["distance_linf"])


def _says(found: str, claimed: Any) -> str:
    return f"{found}, the file says {str(claimed)[:40]}"


def _lengths(images: np.ndarray, clean: np.ndarray) -> dict[str, np.ndarray]:
    """l2 and linf distance of each pair in float64, computed in blocks of 500."""
    found = {"distance_l2": np.zeros(len(clean)), "distance_linf": np.zeros(len(clean))}
    for begin in range(0, len(clean), 500):
        part = slice(begin, begin + 500)
        delta = np.abs(images[part].astype(np.float64) - clean[part].astype(np.float64))
        found["distance_l2"][part], found["distance_linf"][part] = np.sqrt((delta**2).sum(1)), delta.max(1, initial=0.0)
    return found


def _asked(model: nn.Module, x: Tensor, claimed: Tensor, device: str) -> np.ndarray:
    """The predicted class of each image in a batch; an image whose prediction differs from the claim is retried alone."""
    with full_precision():
        said = answered(model, x.to(device)).cpu()
        for place in (said != claimed).nonzero().flatten().tolist():
            alone = answered(model, x[place : place + 1].to(device)).cpu()
            said[place] = alone[0] if alone[0] == claimed[place] else said[place]
    return said.numpy()


def _lost(model: nn.Module, x: Tensor, y: Tensor, device: str) -> np.ndarray:
    """For a smoothed model, True where the label provably loses the vote; for any other model, False everywhere."""
    if not isinstance(model, Smoothed) or not len(x):
        return np.zeros(len(x), dtype=bool)
    with full_precision():
        return model.loses(x.to(device), y.to(device)).cpu().numpy()
