"""The harness: asks the model, counts adversarial images, keeps finished parts."""

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from robustbench_rkhs import verdicts
from robustbench_rkhs.attacks import Attack
from robustbench_rkhs.attacks.ball import distances, per_image, pull_inside
from robustbench_rkhs.attacks.contract import Attacked
from robustbench_rkhs.attacks.engine import EngineAttack
from robustbench_rkhs.data import Split
from robustbench_rkhs.node import UserError
from robustbench_rkhs.shelf import Pair, Shelf
from robustbench_rkhs.smoothing import Smoothed
from robustbench_rkhs.verdicts import Evaluation, Kept, Nearest

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
    "attacking.py",
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
    nearest: Nearest | None = None
    """Gathers the nearest adversarial image of each image, where they are asked for; every part then keeps its own beside it."""
    outside: dict[str, set[int]] = field(default_factory=dict, compare=False, repr=False)
    """Of each attack, the images for which it returned one outside box or ball."""
    shelves: dict[str, Shelf] = field(default_factory=dict, compare=False, repr=False)
    """Finished rows of the jobs met so far, by the job's identity."""

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
        """One job over these images, its rows and what it noticed: read where finished, else worked out and kept.

        Where adversarial images are asked for, a part that found some but holds none of them is done again.
        """
        identity = self.identity(key) | {"indices": digest_of(self.split.index[positions].tolist(), 64)}
        path = self.parts and self.parts / f"{digest_of(identity, 32)}.parquet"
        if path and path.is_file():
            try:
                return self.gathered(verdicts.read_part(path, self.nearest is not None))
            except UserError:
                path.unlink()  # a damaged part is done again
        done = work()
        if path:
            verdicts.write_part(replace(done, about=done.about | {"part": identity}), path)
        return self.gathered(done)

    def each(self, key: dict[str, Any], positions: Tensor, eps: list[float], work: Callable[[Tensor], Evaluation]) -> Evaluation:
        """A job whose outcome for an image depends on no other: rows that any part holds are read, the rest is one new part.

        `work`: of positions among these. `eps`: each image's own; -1 where it has none.
        """
        identity = self.identity(key)
        name = digest_of(identity, 32)
        if name not in self.shelves:
            self.shelves[name] = Shelf(self.parts and self.parts / name, images=self.nearest is not None)
        shelf = self.shelves[name]
        pairs: list[Pair] = list(zip(self.split.index[positions].tolist(), eps, strict=True))
        missing = [place for place, pair in enumerate(pairs) if pair not in shelf]
        if missing:
            shelf.put(work(torch.tensor(missing, device=positions.device)), identity)
        return self.gathered(shelf.take(pairs))

    def gathered(self, done: Evaluation) -> Evaluation:
        """The part, once what it holds besides rows is gathered."""
        if self.nearest is not None and done.kept is not None:
            self.nearest.see(done.table, done.kept)
        for label, indices in done.about.get("outside", {}).items():
            self.outside.setdefault(label, set()).update(indices)
        return done

    def identity(self, key: dict[str, Any]) -> dict[str, Any]:
        """What a job's rows depend on, besides which images it covers."""
        return {
            **key,
            "weights": self.weights,
            "answers": self.answers,
            "data": self.split.digest,
            "split": self.split.split,
            "model": self.name,
            "seed": self.seed,
            "sources": sources_digest(),
            "torch": torch.__version__,
            "device": torch.device(self.device).type,
            "threads": torch.get_num_threads() if torch.device(self.device).type == "cpu" else 0,
            "dtype": str(self.split.x.dtype),
        }


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
    return answered(model, x, batch) != y


@torch.no_grad()
def answered(model: nn.Module, x: Tensor, batch: int = 256) -> Tensor:
    """The class the model gives each image; -1 where its answer is not finite."""
    said = []
    for images in x.split(batch):
        logits = model(images)
        said.append(torch.where(logits.isfinite().all(1), logits.argmax(1), -1))
    return torch.cat(said) if len(x) else torch.zeros(0, dtype=torch.int64, device=x.device)


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
    budgets: Tensor | None = None,
) -> Evaluation:
    """Attack these images and count what fell: pulled exactly inside ball and box, measured in float64, asked again.

    `certified`: each image's largest certified radius; one that fell within it is a breach, replayed in float64 and noted.
    `budgets`: each image's own eps in place of the attack's, for the attacks of our engine; their rows are kept image by image, as
    their outcome for an image depends on no other image.
    An attack that fails with an error leaves rows that say so; they count neither as broken nor as survived.
    """
    label = label or attack.label
    settings = digest_of(attack.model_dump(mode="json", exclude={"eps", "seed", "norm"}))
    key = {"job": "attack", "method": label, "settings": settings, "norm": attack.norm, "box": attack.box}
    if budgets is None:
        value = torch.inf if attack.eps is None else attack.eps
        budgets = torch.full((len(positions),), value, dtype=torch.float64, device=positions.device)
    budgets = budgets.to(positions.device, torch.float64)

    def work(some: Tensor) -> Evaluation:
        counted = _counted(subject, attack, positions[some], certified[some], budgets[some], label)
        rows = subject.rows(positions[some], predicted, shas, settings=settings, **counted.columns)
        return Evaluation(rows, {"breaches": counted.breaches, "outside": counted.outside}, counted.kept)

    if isinstance(subject.asked, Smoothed):  # what is believed of a vote depends on what is claimed of it
        key["certified"] = digest_of(certified.tolist())
    whole = torch.arange(len(positions), device=positions.device)
    if isinstance(attack, EngineAttack):
        done = subject.each(key, positions, torch.where(budgets.isfinite(), budgets, -1.0).tolist(), work)
    else:
        done = subject.part(key | {"eps": attack.eps}, positions, lambda: work(whole))
    broken = int((done.table["radius"].to_numpy() <= certified.cpu().numpy()).sum())
    # rows kept from before there was this certificate: the replay needs the images again
    return done if len(done.about["breaches"]) >= broken else work(whole)


class _Count(NamedTuple):
    """Columns of an attack's rows, and the certificates it broke."""

    columns: dict[str, Any]
    breaches: list[dict[str, Any]]
    outside: dict[str, list[int]]
    """Indices of the images for which the attack returned one outside box or ball."""
    kept: Kept | None
    """The adversarial images, where they are asked for."""


def _counted(subject: Subject, attack: Attack, positions: Tensor, certified: Tensor, budgets: Tensor, label: str) -> _Count:
    """What an attack found on these images, each within its own budget."""
    x, y = subject.split.x[positions], subject.split.y[positions]
    keys, started, reason = subject.split.index[positions], time.perf_counter(), ""
    try:
        if isinstance(attack, EngineAttack):
            attacked = attack(subject.asked, x, y, keys, budgets)
        else:
            attacked = attack(subject.asked, x, y, keys)
    except UserError:
        raise
    except Exception as error:  # a library's fault is a row, not the end of the evaluation
        reason, nothing = "error", torch.zeros(len(x), dtype=torch.int64)
        attacked = Attacked(x, nothing, nothing)
        print(f"attack {label} failed on a block: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    inside, found_images = x.clone(), attacked.images.to(x)
    for eps in budgets.unique().tolist():  # a grid has few
        own = budgets == eps
        inside[own] = pull_inside(x[own], found_images[own], attack.norm, eps if math.isfinite(eps) else None, attack.box)
    said = answered(counting(subject.asked), inside)
    broken = said != y
    if isinstance(subject.asked, Smoothed):
        inside, broken = believed(subject.asked, attack, x, inside, y, certified, broken, budgets)
        said = said if subject.nearest is None else answered(counting(subject.asked), inside)
    found = {norm: torch.where(broken, distances(x, inside, norm), torch.nan) for norm in ("l2", "linf")}
    radius = torch.where(broken, found[attack.norm], torch.inf)
    columns = {
        "norm": attack.norm,
        "box": attack.box,
        "kind": "attack",
        "method": label,
        "eps": torch.where(budgets.isfinite(), budgets, torch.nan).cpu().numpy(),
        "state_reason": reason,
        "radius": radius.cpu().numpy(),
        "distance_l2": found["l2"].cpu().numpy(),
        "distance_linf": found["linf"].cpu().numpy(),
        "forwards": attacked.forwards.cpu().numpy() + 1,
        "backwards": attacked.backwards.cpu().numpy(),
        "seconds": (time.perf_counter() - started) / max(len(x), 1),
        "arithmetic": f"{str(x.dtype).removeprefix('torch.')} on {torch.device(subject.device).type}",
    }
    kept = None if subject.nearest is None else Kept(inside[broken].cpu().numpy(), said[broken].cpu().numpy())
    left = keys[outside(x, attacked.images, attack, budgets)].tolist()
    return _Count(columns, replay(subject, positions, inside, y, radius, certified, label), {label: left} if left else {}, kept)


def outside(x: Tensor, images: Tensor, attack: Attack, budgets: Tensor, slack: float = 1e-6) -> Tensor:
    """Which images that an attack returned are not finite, or outside its box or their balls by more than the slack."""
    flat = images.flatten(1)
    left = ~flat.isfinite().all(1)
    if attack.box == "unit" and flat.shape[1]:
        left |= ~((flat.double().amin(1) >= -slack) & (flat.double().amax(1) <= 1 + slack))
    return left | ~(distances(x, images, attack.norm) <= budgets + slack)


def believed(
    model: Smoothed,
    attack: Attack,
    x: Tensor,
    inside: Tensor,
    y: Tensor,
    certified: Tensor,
    broken: Tensor,
    budgets: Tensor,
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
    reach = torch.minimum(certified.to(away), budgets.to(away))[claimed]
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
