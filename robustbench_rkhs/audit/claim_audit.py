"""The audit: claimed accuracies compared with certificates and attacks, and the known mistakes that would explain a gap."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustbench_rkhs import verdicts
from robustbench_rkhs.attacks import DDN, FMN, Attack, SuperDeepFool
from robustbench_rkhs.attacks.counted import count
from robustbench_rkhs.attacks.engine_attack import EngineAttack
from robustbench_rkhs.audit.claims import Claim
from robustbench_rkhs.audit.mistakes import MISTAKES
from robustbench_rkhs.audit.scene import Scene
from robustbench_rkhs.data import Split
from robustbench_rkhs.evaluation.engine_choice import AnyEngine
from robustbench_rkhs.evaluation.predictions import counting
from robustbench_rkhs.evaluation.recipe import EvalRecipe
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.layers.frozen import freeze
from robustbench_rkhs.nodes.code_names import TYPED
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.parsing import parse
from robustbench_rkhs.nodes.reasons import reason
from robustbench_rkhs.nodes.threat_model import Box, Norm
from robustbench_rkhs.runtime.events import Message, OnEvent, emit, listening
from robustbench_rkhs.runtime.modes import evaluating
from robustbench_rkhs.runtime.precision import full_precision
from robustbench_rkhs.runtime.steps import stepped
from robustbench_rkhs.verdicts import Evaluation, Proportion

Shares = Float[np.ndarray, " images"]
SLACK = 1e-9
"""Relative tolerance when an adversarial distance is compared with a radius."""
SEARCH: dict[Norm, tuple[type[EngineAttack], ...]] = {"l2": (SuperDeepFool, DDN, FMN), "linf": (SuperDeepFool, FMN)}
"""Minimal-norm attacks for the nearest adversarial image; DDN works in l2 only."""


def audit(
    model: nn.Module,
    test: Split,
    claims: Sequence[Claim],
    recipe: EvalRecipe | None = None,
    *,
    name: str = "model",
    folder: str | Path | None = None,
    device: str = "cpu",
    command: str = "",
    engine: AnyEngine | None = None,
    on_event: OnEvent | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """The audit as one JSON value, which report.audit writes and prints.

    Certificates and attacks run through `evaluate` (`recipe`, or its fields by name; default attack: PGD), at every claimed eps.
    If a certified claim exceeds the proved accuracy, each known mistake is reproduced; images that some mistake would certify at
    a larger radius than proved are attacked again by minimal-norm attacks, so that its "certificates" are compared with the
    nearest known adversarial images.
    Verdicts, within 95% limits: `upheld`: the measured value reaches the claim; `refuted`: the claim exceeds the share that
    attacks did not break; `not proved`: between the two. The model is restored
    afterwards. `engine`: what computes the evaluation. `on_event` is called with every event. Raises UserError for bad input.
    """
    if not claims:
        raise UserError("expected at least one claim, found none")
    eps = tuple(sorted({claim.eps for claim in claims if claim.quantity != "clean"})) or (0.0,)
    recipe = recipe or parse(EvalRecipe, {"attacks": ({"name": "pgd"},), "eps": eps, **settings}, "audit", TYPED)
    recipe = recipe.model_copy(update={"eps": eps})
    with listening(on_event):
        return _audited(model, test, claims, recipe, name, folder, device, command, engine)


def _audited(
    model: nn.Module,
    test: Split,
    claims: Sequence[Claim],
    recipe: EvalRecipe,
    name: str,
    folder: str | Path | None,
    device: str,
    command: str,
    engine: AnyEngine | None,
) -> dict[str, Any]:
    """The audit by a recipe that is complete."""
    done = evaluate(model, test, recipe, name=name, folder=folder, device=device, command=command, engine=engine)
    if done.about.incomplete_because == "interrupted":
        raise KeyboardInterrupt
    norm, seed, box = recipe.norm, recipe.seed, done.about.box
    images = verdicts.images(done).set_index("index")
    split = test.sample(recipe.samples, seed)
    images = images.loc[split.index.tolist()]
    right = (images["label"] == images["predicted"]).to_numpy()
    proved, broken = np.where(right, images["certified"], -1.0), images["broken"].to_numpy(dtype=np.float64)
    above = [c for c in claims if c.quantity == "certified" and float((proved >= c.eps).mean()) < c.share]
    stale: list[str] = []
    radii: dict[str, Shares] = {}
    notes: list[str] = []
    if above:
        emit(Message(text="a certified claim lies above what is proved: reproducing known mistakes"))
        radii, stale, notes = reenact(model, split, norm)
        broken = np.minimum(broken, closer(model, split, radii, proved, norm, box, seed, device, recipe.block, notes))
    found = [_verdict(claim, done, proved, broken, right) for claim in claims]
    mistakes = [row for claim in above for row in _causes(claim, radii, broken)]
    for row in found:
        own = [mistake for mistake in mistakes if mistake["claim"] == row["claim"]]
        raising = [mistake for mistake in own if mistake["certified"] > row["measured"] and row["verdict"] != "upheld"]
        row["causes"] = [mistake["mistake"] for mistake in raising if mistake["reproduces"]]
        row["nearest"] = raising[0]["mistake"] if raising else ""
    kept = ("model", "norm", "box", "samples", "seed", "device", "date", "data", "data_digest", "weights", "protocol", "versions")
    about = done.about.model_dump(mode="json", include=set(kept)) | {"date": date.today().isoformat(), "command": command}
    return {
        "about": about
        | {"certificates": list(done.about.certificates), "complete": done.about.complete}
        | {"incomplete_because": done.about.incomplete_because},
        "claims": found,
        "mistakes": mistakes,
        "refused": list(done.about.refused),
        "stale": stale,
        "notes": notes,
        "failed": list(done.about.failed),
        "protocol_failed": verdicts.protocol_failed(done),
        "breaches": len(done.about.breaches),
    }


def reenact(model: nn.Module, split: Split, norm: str = "l2") -> tuple[dict[str, Shares], list[str], list[str]]:
    """Every mistake's radii per image; stale layers; and notes on what could not be reproduced."""
    notes: list[str] = []
    try:
        scene = Scene.of(model, split.x, split.y, norm)
    except (RuntimeError, ValueError) as error:  # for example a foreign model that runs only in float32
        return {}, [], [f"no mistake reproduced: the model's layers cannot be run in float64: {reason(error)}"]
    if scene.refused:
        notes.append(f"nothing is proved for the whole model ({scene.refused}); in every mistake below such parts count as 1")
    found: dict[str, Shares] = {}
    with stepped("known mistakes", "", len(MISTAKES), "mistakes") as step:
        for name, mistake in MISTAKES.items():
            step.tell(detail=name)
            try:
                radii = mistake(scene)
            except (RuntimeError, ValueError, UserError) as error:  # a foreign layer that cannot be analysed
                notes.append(f"not reproduced: {name}: {reason(error)}")
                continue
            finally:
                step.add()
            if radii is not None:
                found[name] = radii.numpy()
    return found, scene.stale, notes


def closer(
    model: nn.Module,
    split: Split,
    radii: dict[str, Shares],
    proved: Shares,
    norm: Norm,
    box: Box,
    seed: int,
    device: str,
    block: int,
    notes: list[str],
) -> Shares:
    """Distances that minimal-norm attacks find for images whose radius a mistake inflates; inf elsewhere. Failures are noted."""
    nearest = np.full(len(proved), np.inf)
    if not radii:
        return nearest
    largest = np.max([np.where(np.isfinite(r), r, np.finfo(float).max) for r in radii.values()], axis=0)
    concerned = torch.from_numpy(np.flatnonzero((proved >= 0) & (largest > np.maximum(proved, 0) * (1 + SLACK))))
    with evaluating(model, device):
        queried = freeze(model)
        with full_precision():
            for kind in SEARCH[norm]:
                attack = kind(box=box).aimed(norm=norm, eps=None, seed=seed)
                with stepped("images of the mistakes", attack.label, len(concerned)) as step:
                    for part in concerned.split(block):
                        _nearer(queried, split, part, attack, device, nearest, notes)
                        step.add(len(part))
                        step.tell()
    return nearest


def _nearer(
    queried: nn.Module,
    split: Split,
    part: Tensor,
    attack: Attack,
    device: str,
    nearest: Shares,
    notes: list[str],
) -> None:
    """What one attack finds for these images, into `nearest`."""
    x, y = split.x[part].to(device), split.y[part].to(device)
    try:
        found = attack(queried, x, y, split.index[part].to(device)).images
    except UserError:
        raise
    except Exception as error:  # an error of the model leaves images unbroken, and is noted
        notes.append(f"attack {attack.label} failed on {len(x)} images: {type(error).__name__}")
        return
    counted = count(counting(queried), x, found, norm=attack.norm, box=attack.box, eps=None)
    away = torch.where(counted.misses(y), counted.distance, torch.inf)
    nearest[part.numpy()] = np.minimum(nearest[part.numpy()], away.cpu().numpy())


def _verdict(claim: Claim, done: Evaluation, proved: Shares, broken: Shares, right: Any) -> dict[str, Any]:
    """Claimed and measured share, the share that attacks did not break, limits, and the verdict."""
    images = len(right)
    standing = int((right & (broken > claim.eps)).sum()) if claim.quantity != "clean" else int(right.sum())
    if claim.quantity == "clean":
        measured = Proportion.of(standing, images)
    elif claim.quantity == "certified":
        measured = Proportion.of(int((proved >= claim.eps).sum()), images)
    else:
        states = verdicts.states(done, claim.eps)["state"]
        tested = int(states.isin(["certified", "survived"]).sum())
        measured = Proportion.of(min(tested, standing), images)
    limit = Proportion.of(standing, images)
    upheld, refuted = measured.high >= claim.share, limit.high < claim.share
    return {
        "claim": claim.text,
        "quantity": claim.quantity,
        "eps": claim.eps,
        "claimed": claim.share,
        "measured": measured.share,
        "measured_low": measured.low,
        "measured_high": measured.high,
        "standing": limit.share,
        "standing_low": limit.low,
        "standing_high": limit.high,
        "images": images,
        "difference": claim.share - measured.share,
        "verdict": "upheld" if upheld else "refuted" if refuted else "not proved",
    }


def _causes(claim: Claim, radii: dict[str, Shares], broken: Shares) -> list[dict[str, Any]]:
    """The share that each mistake would certify at the claim's eps, the nearest to the claim first."""
    rows = []
    for name, radius in radii.items():
        said = radius >= claim.eps
        share = Proportion.of(int(said.sum()), len(said))
        rows.append(
            {
                "claim": claim.text,
                "eps": claim.eps,
                "claimed": claim.share,
                "mistake": name,
                "certified": share.share,
                "low": share.low,
                "high": share.high,
                "away": abs(share.share - claim.share),
                "certificates": share.successes,
                "broken_within_eps": int((said & (broken <= claim.eps)).sum()),
                "broken_within_radius": int((said & (broken < radius * (1 - SLACK))).sum()),
                "reproduces": share.low <= claim.share <= share.high,
            }
        )
    return sorted(rows, key=lambda row: (row["away"], -row["broken_within_radius"], row["mistake"]))
