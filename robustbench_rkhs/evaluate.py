"""Evaluation: certificates first, then attacks on what is still open, into one table of verdicts."""

import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from robustbench_rkhs import harness, verdicts
from robustbench_rkhs.arithmetic import exact
from robustbench_rkhs.attacks import PGD, Attack, AutoAttack, FoolboxAttack
from robustbench_rkhs.certificates import SmoothingCertificate
from robustbench_rkhs.checkpoint import weights_digest
from robustbench_rkhs.data import Split, arrays_digest
from robustbench_rkhs.harness import Subject
from robustbench_rkhs.layers.settling import settled
from robustbench_rkhs.node import UserError
from robustbench_rkhs.portfolio import Portfolio
from robustbench_rkhs.recipe import EvalRecipe, parse
from robustbench_rkhs.scrutiny import scrutinise
from robustbench_rkhs.smoothing import Smoothed
from robustbench_rkhs.verdicts import Evaluation

Say = Callable[[str], None]
FIRST = 8
"""Images of the first block: after it, the time to go is told."""


def evaluate(
    model: nn.Module,
    data: Split | tuple[Tensor, Tensor],
    recipe: EvalRecipe | None = None,
    *,
    eps: Sequence[float] = (),
    name: str = "model",
    folder: str | Path | None = None,
    device: str = "cpu",
    command: str = "",
    say: Say = lambda line: None,
    **settings: Any,
) -> Evaluation:
    """The table of verdicts of any `nn.Module` that maps images in [0, 1] to logits.

    `data`: a Split, or images and labels. `recipe`, or its fields by name (`eps`, `norm`, `attacks`, `certificates`,
    `samples`, `seed`, `block`). With a `folder`, finished parts are kept under folder/name/parts and never done again, and
    the table is written to folder/name/. Interrupted by the keyboard, it returns (and writes) what there is: images that no
    protocol reached are untested. The model, its mode and gradients are left as they were.
    TF32 and other reduced-precision short cuts are switched off meanwhile.
    Raises UserError for bad input: eps out of range, NaN or probabilities from the model, a wrong class count, autocast.
    """
    recipe = recipe or parse(EvalRecipe, {"eps": tuple(eps), **settings}, "evaluate")
    recipe = for_smoothed(recipe) if isinstance(model, Smoothed) else recipe
    split = _as_split(model, data).sample(recipe.samples, recipe.seed)
    modes = {module: module.training for module in model.modules()}
    home = next(iter([*model.parameters(), *model.buffers()]), torch.zeros(1)).device
    try:
        model.eval().to(device)
        parts = Path(folder) / name / "parts" if folder else None
        weights = weights_digest(model.state_dict())
        subject = Subject(model, settled(model), split.to(device), name, weights, device, recipe.seed, parts)
        with exact():
            run = _Run(subject, recipe, say)
            run.about |= {"command": command}
            run.about |= {"smoothed": model.extra_repr()} if isinstance(model, Smoothed) else {}
            table, complete = run.all()
    finally:
        model.to(home)
        for module, training in modes.items():
            module.training = training
    evaluation = Evaluation(table, run.about | {"complete": complete})
    if folder:
        path = Path(folder) / name / f"{recipe.norm}-{run.digest}.parquet"
        verdicts.write(evaluation, path)
        evaluation.about["path"] = str(path)
    return evaluation


def _as_split(model: nn.Module, data: Split | tuple[Tensor, Tensor]) -> Split:
    if isinstance(data, Split):
        if data.task == "regression":
            raise UserError(f"data set {data.data!r} is a regression: attacks and certificates need classes, which it has not")
        return data
    x, y = (torch.as_tensor(part) for part in data)
    if len(x) == 0 or len(x) != len(y):
        raise UserError(f"expected images and as many labels, found {len(x)} and {len(y)}")
    if not x.is_floating_point() or not x.isfinite().all() or x.min() < 0 or x.max() > 1:
        raise UserError("expected finite float images in [0, 1]")
    x = x.to(next(model.parameters(), torch.zeros(1)).dtype)
    classes = harness.classes_of(model, x[:1])
    if y.min() < 0 or y.max() >= classes:
        raise UserError(f"expected labels 0 to {classes - 1}, found {int(y.min())} to {int(y.max())}")
    digest = arrays_digest(x.cpu().numpy(), y.cpu().numpy())
    return Split("arrays", "test", x, y.long(), torch.arange(len(x)), classes, digest)


class _Run:
    """One evaluation under way."""

    def __init__(self, subject: Subject, recipe: EvalRecipe, say: Say) -> None:
        self.subject, self.recipe, self.say = subject, recipe, say
        split = subject.split
        largest = 1.0 if recipe.norm == "linf" else math.sqrt(math.prod(split.shape))
        for eps in recipe.eps:
            if eps > largest and split.box == "unit":
                raise UserError(f"eps {eps:g} is above the data range: no {recipe.norm} distance exceeds {largest:.4g} in [0, 1]")
        if not recipe.eps:
            raise UserError("expected at least one eps, found none")
        self.epsilons = sorted(set(recipe.eps), reverse=True)
        self.protocol = protocol(recipe, split)
        boxes = {attack.box for attack in self.protocol}
        if len(boxes) > 1:
            raise UserError("attacks with box 'none' and with box 'unit' make two evaluations: run them apart")
        self.box = boxes.pop()
        for certificate in recipe.certificates:
            if self.box == "none" and getattr(certificate, "box", "none") == "unit":
                raise UserError(
                    f"{certificate.label} with box 'unit' proves nothing outside [0, 1]: expected box 'none', as attacked"
                )
        labels = [attack.label for attack in self.protocol]
        if len(set(labels)) < len(labels):
            labels = [f"{label}#{i}" if labels.count(label) > 1 else label for i, label in enumerate(labels)]
        self.labels = labels
        self.shas = subject.inputs
        settings = recipe.model_dump(mode="json")
        self.digest = harness.digest_of([settings, subject.weights, split.digest, harness.sources_digest()], 12)
        self.about: dict[str, Any] = {
            "model": subject.name,
            "norm": recipe.norm,
            "box": self.box,
            "epsilons": sorted(self.epsilons),
            "protocol": self.labels,
            "certificates": [one.label for one in recipe.certificates],
            "samples": len(split),
            "seed": recipe.seed,
            "device": _device(subject.device),
            "date": date.today().isoformat(),
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
            "data": split.data,
            "data_digest": split.digest,
            "weights": subject.weights,
            "settings": settings,
            "refused": [],
            "breaches": [],
        }
        self.tables: list[pd.DataFrame] = []
        self.here: list[pd.DataFrame] = []  # what is known of the block in hand
        self.proofs = 0  # how many tables hold predictions and certificates of all images
        self.certified = torch.full((len(split),), -1.0, dtype=torch.float64, device=subject.device)

    def all(self) -> tuple[pd.DataFrame, bool]:
        """Every block; what there is when the keyboard interrupts."""
        complete = False
        positions = torch.arange(len(self.subject.split), device=self.subject.device)
        logits = harness.ask(self.subject.asked, self.subject.split.x, self.subject.split.classes)
        answers = weights_digest({"logits": logits})
        self.subject, predicted = replace(self.subject, answers=answers), logits.argmax(1)
        self.tables.append(self.subject.rows(positions, predicted, self.shas, norm=self.recipe.norm, box=self.box))
        try:
            proofs = Portfolio(self.subject, self.recipe, self.box, self.shas, predicted, self.say)
            try:
                proofs.all()
            finally:  # what was proved before an interruption stays
                self.tables += proofs.tables
                self.about["refused"] += proofs.refused
            self.certified, self.proofs = proofs.certified, len(self.tables)
            first = min(FIRST, self.recipe.block)
            blocks, started = [positions[:first], *positions[first:].split(self.recipe.block)], time.monotonic()
            for number, block in enumerate(block for block in blocks if len(block)):
                self.attack(block, predicted)
                if number == 0 and len(positions) > first:
                    took = time.monotonic() - started
                    togo = took * (len(positions) - first) / first
                    self.say(
                        f"first {first} images took {took:.0f} s; about {togo / 60:.1f} min to go for {len(positions) - first}"
                    )
            self.scrutinise(predicted)
            complete = True
        except KeyboardInterrupt:
            self.say("interrupted: the table holds what was finished; the same command goes on from here")
        return verdicts.merge(self.tables), complete

    def scrutinise(self, predicted: Tensor) -> None:
        """May the attacks be believed? The diagnoses, and more attacks on the survivors where one trips."""
        found = scrutinise(self.subject, self.recipe, self.about, self.tables, self.protocol, predicted, self.certified)
        self.tables += found.tables
        self.about |= {"diagnostics": found.diagnostics, "marks": found.marks}
        self.about["breaches"] += found.breaches

    def states(self, block: Tensor, eps: float) -> pd.Series:
        """The state of each image of the block at eps, by its index."""
        indices = self.subject.split.index[block].tolist()
        here = pd.concat(self.here, ignore_index=True)
        return verdicts.states(Evaluation(here, self.about), eps)["state"].reindex(indices)

    def attack(self, block: Tensor, predicted: Tensor) -> None:
        """The protocol on what is open, largest eps first; then the masking check and the audit."""
        indices = self.subject.split.index[block].tolist()
        self.here = [table[table["index"].isin(indices)] for table in self.tables[: self.proofs]]
        for eps in self.epsilons:
            for attack, label in zip(self.protocol, self.labels, strict=True):
                self.run(attack.aimed(norm=self.recipe.norm, eps=eps, seed=self.recipe.seed), label, block, predicted, eps)
        if not any(attack.scale_invariant for attack in self.protocol):
            check = PGD(box=self.box, steps=20)
            for eps in self.epsilons:
                states = self.states(block, eps)
                aimed = check.aimed(norm=self.recipe.norm, eps=eps, seed=self.recipe.seed)
                self.collect(aimed, "check:pgd", block[_mask(states == "survived", block)], predicted)
        certified = pd.concat(
            [self.states(block, eps) == "certified" for eps in self.epsilons if eps > 0] or [pd.Series(dtype=bool)],
            axis=1,
        )
        if certified.size and certified.any(axis=1).any():
            audit = FoolboxAttack(attack="deepfool", box=self.box)
            aimed = audit.aimed(norm=self.recipe.norm, eps=None, seed=self.recipe.seed)
            self.collect(aimed, "audit:deepfool", block[_mask(certified.any(axis=1), block)], predicted)

    def run(self, attack: Attack, label: str, block: Tensor, predicted: Tensor, eps: float) -> None:
        """One attack of the protocol on the images still open at eps: untested, or survived only so far."""
        states = self.states(block, eps)
        indices = self.subject.split.index[block].tolist()
        table = pd.concat(self.here, ignore_index=True)
        done = table[(table["kind"] == "attack") & (table["method"] == label)]
        if attack.minimal_norm:
            had = set(done["index"])
        else:
            had = set(done.loc[(done["eps"] >= eps) & (np.isinf(done["radius"])) & (done["state_reason"] == ""), "index"])
        todo = [states[index] == "untested" and index not in had for index in indices]
        self.collect(attack, label, block[torch.tensor(todo, device=block.device)], predicted)

    def collect(self, attack: Attack, label: str, positions: Tensor, predicted: Tensor) -> None:
        if len(positions):
            known = self.certified[positions]
            done = harness.run_attack(self.subject, attack, positions, predicted, self.shas, known, label)
            self.tables.append(done.table)
            self.here.append(done.table)
            self.about["breaches"] += done.about["breaches"]


def protocol(recipe: EvalRecipe, split: Split) -> list[Attack]:
    """The attacks of the evaluation, in the split's box where they name none.

    Without any: PGD and AutoAttack; where inputs do not lie in [0, 1], which AutoAttack needs, PGD and a minimal-norm attack.
    Raises UserError for an attack that keeps to [0, 1] inputs which do not.
    """
    if split.box == "unit":
        return list(recipe.attacks) or [PGD(), AutoAttack()]
    attacks: list[Attack] = []
    if not recipe.attacks:
        attacks = [PGD(box="none"), FoolboxAttack(attack="ddn" if recipe.norm == "l2" else "fmn", box="none")]
    for attack in recipe.attacks:
        if isinstance(attack, AutoAttack) or ("box" in attack.model_fields_set and attack.box == "unit"):
            raise UserError(f"data set {split.data!r} does not lie in [0, 1], where attack {attack.label!r} stays")
        attacks.append(attack.model_copy(update={"box": "none"}))
    return attacks


def for_smoothed(recipe: EvalRecipe) -> EvalRecipe:
    """What a smoothed classifier gets where the recipe names nothing: its own certificate, and PGD through the soft vote."""
    missing: dict[str, Any] = {} if recipe.attacks else {"attacks": (PGD(seed=recipe.seed),)}
    if "certificates" not in recipe.model_fields_set:
        missing["certificates"] = (SmoothingCertificate(seed=recipe.seed),)
    return recipe.model_copy(update=missing)


def _mask(chosen: pd.Series, block: Tensor) -> Tensor:
    return torch.tensor(chosen.to_numpy(dtype=bool), device=block.device)


def _device(device: str) -> str:
    from robustbench_rkhs.train import describe

    return describe(device)
