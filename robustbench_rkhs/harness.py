"""The harness: asks the model, counts adversarial images, keeps finished parts."""

import copy
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from robustbench_rkhs import verdicts
from robustbench_rkhs.attacks import Attack
from robustbench_rkhs.attacks.ball import distances, per_image, pull_inside
from robustbench_rkhs.attacks.contract import Attacked
from robustbench_rkhs.data import Split
from robustbench_rkhs.node import UserError
from robustbench_rkhs.smoothing import Smoothed
from robustbench_rkhs.verdicts import Evaluation

SOURCES = (
    "attacks",
    "certificates",
    "diagnostics",
    "layers",
    "lipschitz",
    "relaxations",
    "smoothing.py",
    "counters.py",
    "harness.py",
    "portfolio.py",
    "scrutiny.py",
    "evaluate.py",
)
"""What a part's contents depend on, in this package."""


@cache
def sources_digest() -> str:
    """sha256 over the source files that a part depends on."""
    sha, package = hashlib.sha256(), Path(__file__).parent
    for source in SOURCES:
        path = package / source
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            sha.update(file.read_bytes())
    return sha.hexdigest()


def digest_of(value: Any, length: int = 16) -> str:
    """The first hex digits of the sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:length]


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a model in eval mode on a device, its images there, and the words that name both in the table."""

    model: nn.Module
    """What certificates look at."""
    asked: nn.Module
    """What is asked and attacked: the same function, its constants worked out."""
    split: Split
    name: str
    weights: str
    device: str
    seed: int
    parts: Path | None
    """Folder of finished parts; nothing is kept where None."""
    answers: str = ""
    """sha256 of its clean logits: code that changed while the weights did not must not be served old parts."""

    @property
    def inputs(self) -> list[str]:
        return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in self.split.x.cpu().contiguous()]

    def rows(self, positions: Tensor, predicted: Tensor, shas: list[str], **columns: Any) -> pd.DataFrame:
        """Rows of the table for these images; every column not given has its neutral value."""
        split, where = self.split, positions.tolist()
        neutral: dict[str, Any] = {
            "model": self.name,
            "weights": self.weights,
            "data": split.data,
            "split": split.split,
            "norm": "l2",
            "box": "unit",
            "kind": "certificate",
            "method": "prediction",
            "settings": "",
            "eps": np.nan,
            "index": split.index[positions].cpu().numpy(),
            "input_sha256": [shas[i] for i in where],
            "label": split.y[positions].cpu().numpy(),
            "predicted": predicted[positions].cpu().numpy(),
            "state_reason": "",
            "radius": 0.0,
            "distance_l2": np.nan,
            "distance_linf": np.nan,
            "forwards": 0,
            "backwards": 0,
            "seconds": 0.0,
            "arithmetic": "",
            "failure_probability": 0.0,
        }
        return pd.DataFrame(neutral | columns, index=range(len(where)))

    def part(self, key: dict[str, Any], positions: Tensor, work: Callable[[], Evaluation]) -> Evaluation:
        """One job over these images, its rows and what it noticed: read where finished, else worked out and kept."""
        identity = {
            **key,
            "weights": self.weights,
            "answers": self.answers,
            "data": self.split.digest,
            "split": self.split.split,
            "model": self.name,
            "seed": self.seed,
            "indices": digest_of(self.split.index[positions].tolist(), 64),
            "sources": sources_digest(),
            "torch": torch.__version__,
            "device": torch.device(self.device).type,
            "threads": torch.get_num_threads() if torch.device(self.device).type == "cpu" else 0,
            "dtype": str(self.split.x.dtype),
        }
        path = self.parts and self.parts / f"{digest_of(identity, 32)}.parquet"
        if path and path.is_file():
            try:
                return verdicts.read(path)
            except UserError:
                path.unlink()  # a damaged part is done again
        done = work()
        if path:
            verdicts.write(Evaluation(done.table, done.about | {"part": identity}), path)
        return done


@torch.no_grad()
def classes_of(model: nn.Module, x: Tensor) -> int:
    """How many logits the model gives for one image; its mode stays as it was. Raises UserError where it gives none."""
    modes = {module: module.training for module in model.modules()}
    home = next(iter([*model.parameters(), *model.buffers()]), x).device
    try:
        out = model.eval()(x.to(home))
    except (RuntimeError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"the model cannot take images of shape {tuple(x.shape[1:])}: {reason}") from None
    finally:
        for module, training in modes.items():
            module.training = training
    if not isinstance(out, Tensor) or out.dim() != 2:
        found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise UserError(f"expected logits of shape (images, classes), the model returned {found}")
    return out.shape[1]


@torch.no_grad()
def ask(model: nn.Module, x: Tensor, classes: int, batch: int = 256) -> Tensor:
    """Logits, checked. Raises UserError at a wrong shape, NaN, or probabilities in place of logits."""
    logits = []
    for images in x.split(batch):
        try:
            out = model(images)
        except (RuntimeError, ValueError, IndexError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"the model cannot take images of shape {tuple(x.shape[1:])}: {reason}") from None
        if not isinstance(out, Tensor) or out.dim() != 2 or len(out) != len(images):
            what = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise UserError(f"expected logits of shape ({len(images)}, {classes}), the model returned {what}")
        logits.append(out)
    found = torch.cat(logits) if logits else x.new_zeros(0, classes)
    if found.shape[1] != classes:
        raise UserError(f"expected logits of {classes} classes, the model returned {found.shape[1]}")
    if not found.isfinite().all():
        raise UserError(f"the model returned NaN or infinity on {int((~found.isfinite().all(1)).sum())} of {len(x)} clean images")
    if len(found) and (found >= 0).all() and ((found.sum(1) - 1).abs() < 1e-3).all():
        raise UserError("the model returns probabilities (rows sum to 1); expected logits: remove its last softmax")
    return found


@torch.no_grad()
def fallen(model: nn.Module, x: Tensor, y: Tensor, batch: int = 256) -> Tensor:
    """Which images are misclassified; an answer that is not finite is no right answer."""
    wrong = []
    for images, labels in zip(x.split(batch), y.split(batch), strict=True):
        logits = model(images)
        wrong.append((logits.argmax(1) != labels) | ~logits.isfinite().all(1))
    return torch.cat(wrong) if wrong else torch.zeros(0, dtype=torch.bool, device=x.device)


def counting(model: nn.Module) -> nn.Module:
    """What adversarial images are counted by: the model, or a smoothed one's vote by draws that no attack has seen."""
    return model.recounted() if isinstance(model, Smoothed) else model


def run_attack(
    subject: Subject,
    attack: Attack,
    positions: Tensor,
    predicted: Tensor,
    shas: list[str],
    certified: Tensor,
    label: str = "",
) -> Evaluation:
    """Attack these images and count what fell: pulled exactly inside ball and box, measured in float64, asked again.

    `certified`: each image's largest certified radius; one that fell within it is a breach, replayed in float64 and noted.
    An attack that fails with an error leaves rows that say so; they count neither as broken nor as survived.
    """
    label = label or attack.label
    settings = digest_of(attack.model_dump(mode="json", exclude={"eps", "seed", "norm"}))
    key = {
        "job": "attack",
        "method": label,
        "settings": settings,
        "norm": attack.norm,
        "box": attack.box,
        "eps": attack.eps,
    }

    def work() -> Evaluation:
        x, y = subject.split.x[positions], subject.split.y[positions]
        started, reason = time.perf_counter(), ""
        try:
            attacked = attack(subject.asked, x, y, subject.split.index[positions])
        except UserError:
            raise
        except Exception as error:  # a library's fault is a row, not the end of the evaluation
            reason, nothing = "error", torch.zeros(len(x), dtype=torch.int64)
            attacked = Attacked(x, nothing, nothing)
            print(f"attack {label} failed on a block: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        inside = pull_inside(x, attacked.images.to(x), attack.norm, attack.eps, attack.box)
        broken = fallen(counting(subject.asked), inside, y)
        if isinstance(subject.asked, Smoothed):
            inside, broken = believed(subject.asked, attack, x, inside, y, certified, broken)
        found = {norm: torch.where(broken, distances(x, inside, norm), torch.nan) for norm in ("l2", "linf")}
        radius = torch.where(broken, found[attack.norm], torch.inf)
        breaches = replay(subject, positions, inside, y, radius, certified, label)
        rows = subject.rows(
            positions,
            predicted,
            shas,
            norm=attack.norm,
            box=attack.box,
            kind="attack",
            method=label,
            settings=settings,
            eps=np.nan if attack.eps is None else attack.eps,
            state_reason=reason,
            radius=radius.cpu().numpy(),
            distance_l2=found["l2"].cpu().numpy(),
            distance_linf=found["linf"].cpu().numpy(),
            forwards=attacked.forwards.cpu().numpy() + 1,
            backwards=attacked.backwards.cpu().numpy(),
            seconds=(time.perf_counter() - started) / max(len(x), 1),
            arithmetic=f"{str(x.dtype).removeprefix('torch.')} on {torch.device(subject.device).type}",
        )
        return Evaluation(rows, {"breaches": breaches})

    return subject.part(key, positions, work)


def believed(
    model: Smoothed, attack: Attack, x: Tensor, inside: Tensor, y: Tensor, certified: Tensor, broken: Tensor
) -> tuple[Tensor, Tensor]:
    """The images and which are broken, once certificates were tried at the edge of their claims.

    Attacks stop near where the vote turns, and there a vote of finitely many draws proves nothing. A certificate speaks of its
    whole ball: the label is tried at its edge, in the direction the attack found, and the claim is broken where the label is
    proved to lose there. A vote inside the ball without that proof is not counted.
    """
    away = distances(x, inside, attack.norm)
    claimed = (broken & (certified.to(away) > 0)).nonzero().flatten()
    if not len(claimed):
        return inside, broken
    reach = certified.to(away)[claimed].clamp_max(torch.inf if attack.eps is None else attack.eps)
    stretch = reach / away[claimed].clamp_min(1e-12) * (1 - 1e-6)
    edge = x[claimed] + (inside[claimed] - x[claimed]) * per_image(stretch, x).to(x)
    edge = edge.clamp(0, 1) if attack.box == "unit" else edge
    lost = model.loses(edge, y[claimed])
    inside, broken = inside.clone(), broken.clone()
    inside[claimed[lost]] = edge[lost]
    broken[claimed[~lost & (away[claimed] <= reach)]] = False
    return inside, broken


def replay(
    subject: Subject, positions: Tensor, inside: Tensor, y: Tensor, radius: Tensor, certified: Tensor, label: str
) -> list[dict[str, Any]]:
    """Breaches among these images, each asked again in float64.

    `proof error`: the float64 network errs too, so the certificate is false; `arithmetic`: only the evaluated one errs.
    """
    hit = (radius <= certified.to(radius)).nonzero().flatten()
    if not len(hit):
        return []
    twin = counting(copy.deepcopy(subject.model).cpu().double())
    wrong = fallen(twin, inside[hit].cpu().double(), y[hit].cpu())
    return [
        {
            "index": int(subject.split.index[positions[i]]),
            "attack": label,
            "distance": float(radius[i]),
            "certified": float(certified[i]),
            "cause": "proof error" if bad else "arithmetic",
        }
        for i, bad in zip(hit.tolist(), wrong.tolist(), strict=True)
    ]
