"""Evaluation: certificates first, then attacks on what is still open, into one table of verdicts."""

import copy
import math
import platform
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from robustbench_rkhs import verdicts
from robustbench_rkhs.attacks import PGD, Attack, AutoAttack
from robustbench_rkhs.attacks.efforts import protocol_of
from robustbench_rkhs.attacks.engine_attack import searched_in
from robustbench_rkhs.certificates import SmoothingCertificate
from robustbench_rkhs.data import Split, Stream
from robustbench_rkhs.data.given import given_images, given_labels, given_split
from robustbench_rkhs.evaluation.attack_phase import AttackPhase
from robustbench_rkhs.evaluation.bounds_so_far import BoundsSoFar
from robustbench_rkhs.evaluation.cache_key import digest_of, sources_digest
from robustbench_rkhs.evaluation.certificate_job import unproved
from robustbench_rkhs.evaluation.certify_phase import CertifyPhase
from robustbench_rkhs.evaluation.constant import diagnosed_constant, protocol_of_constants
from robustbench_rkhs.evaluation.counting import given_up
from robustbench_rkhs.evaluation.diagnosis_phase import DiagnosisPhase
from robustbench_rkhs.evaluation.diagnostics.transfer import Transfer
from robustbench_rkhs.evaluation.engine_choice import AnyEngine, Here
from robustbench_rkhs.evaluation.engines import Engine
from robustbench_rkhs.evaluation.engines.start import started
from robustbench_rkhs.evaluation.exchange import Exchange
from robustbench_rkhs.evaluation.first_look import FirstLook
from robustbench_rkhs.evaluation.independence import IMAGES, independence
from robustbench_rkhs.evaluation.job_log import JobLog
from robustbench_rkhs.evaluation.jobs import Job
from robustbench_rkhs.evaluation.loaders import Loader
from robustbench_rkhs.evaluation.phase_state import Work
from robustbench_rkhs.evaluation.predictions import ask, classes_of
from robustbench_rkhs.evaluation.progress import Follower
from robustbench_rkhs.evaluation.recipe import EvalRecipe
from robustbench_rkhs.evaluation.rounding import check_bits, round_nearest
from robustbench_rkhs.evaluation.runner import Runner
from robustbench_rkhs.evaluation.scheduler import Scheduler
from robustbench_rkhs.evaluation.second_look import SecondLook
from robustbench_rkhs.evaluation.sizing import sized
from robustbench_rkhs.evaluation.store import Store
from robustbench_rkhs.evaluation.subject import Subject
from robustbench_rkhs.evaluation.threads import chosen
from robustbench_rkhs.evaluation.training_accuracy import above_training
from robustbench_rkhs.identity import fixed_logits, identity_of, key_of
from robustbench_rkhs.layers.frozen import freeze
from robustbench_rkhs.networks.smoothed import Smoothed
from robustbench_rkhs.nodes.code_names import TYPED
from robustbench_rkhs.nodes.names import folder_of
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.own_code import own_code_digest
from robustbench_rkhs.nodes.parsing import parse
from robustbench_rkhs.nodes.radius_text import radius_text
from robustbench_rkhs.runtime.children import WorkerKilled
from robustbench_rkhs.runtime.clock import Clock, OutOfTime
from robustbench_rkhs.runtime.devices import describe
from robustbench_rkhs.runtime.digests import weights_digest
from robustbench_rkhs.runtime.events import Finished, Message, OnEvent, PhaseStarted, emit, listening
from robustbench_rkhs.runtime.modes import evaluating
from robustbench_rkhs.runtime.object_store import ObjectStore
from robustbench_rkhs.runtime.precision import full_precision
from robustbench_rkhs.runtime.threads import threads
from robustbench_rkhs.verdicts import About, Evaluation, Nearest, Noticed, Part

SAID = ("model", "weights", "key", "data", "data_digest", "norm", "box", "samples", "date", "command", "versions", "smoothed")
"""What a file of adversarial images repeats of what the evaluation is about."""
KEPT = 2**30
"""Bytes of images up to which adversarial images are kept in memory where nobody said whether to."""


def evaluate(
    model: nn.Module,
    data: Split | tuple[Tensor, Tensor],
    recipe: EvalRecipe | None = None,
    *,
    eps: Sequence[float] = (),
    name: str = "model",
    folder: str | Path | None = None,
    adversarials: bool | str | Path | None = None,
    bits: Any = None,
    twin: nn.Module | None = None,
    training: Split | None = None,
    device: str = "cpu",
    command: str = "",
    loader: Loader | None = None,
    engine: AnyEngine | None = None,
    parts: str | None = None,
    on_event: OnEvent | None = None,
    **settings: Any,
) -> Evaluation:
    """The table of verdicts of any `nn.Module` that maps images in [0, 1] to logits.

    `data`: a Split, or images and labels. `recipe`, or its fields by name (`eps`, `norm`, `attacks`, `effort`, `budget`,
    `certificates`, `samples`, `seed`, `block`, `workers`, `threads`, `rechecked`). With a `folder`, finished parts are kept
    under folder/name/parts and never done again, and the table is written to folder/name/, where git ignores it until it is
    published; a complete table of the same evaluation that is there stays. `adversarials`: True keeps the nearest
    counted adversarial image of each image, over all attacks, for `Evaluation.adversarials()`; a .npz file gets them too; None
    keeps them where there is no folder and the images take at most 1 GiB. `bits`: their pixels are rounded to
    k / (2^bits - 1) where that leaves them adversarial within eps (`attacks/bit_depth.py`); their column `bits` says where.
    `twin`: a network of the same data and classes, trained without defence: what breaks it is tried on every survivor (rows of
    method `transfer`), and the diagnosis compares. `training`: training images, whose accuracy is compared with that on the test
    images (`evaluation/training_accuracy.py`). `loader`: where processes on other devices get the same model and images;
    without it they are sent along. `engine`: what computes the jobs (`evaluation/engine_choice.py`); the table is the same with any
    of them, and folder/name/jobs/ says where each job was computed. `parts`: URL of an object store (`s3://bucket/evaluations`)
    below which machines that share no folder exchange finished parts, beside a folder of their own.
    `on_event` is called with every event (`runtime/events.py`).
    Interrupted by the keyboard, or when `budget` seconds are used up, it returns (and writes) what there is: images that no
    protocol reached are untested; where there is no time to ask about each image once, fewer are taken, which a line says. The
    model, its mode and gradients are left as they were.
    TF32 and other reduced-precision short cuts are switched off meanwhile.
    Raises UserError for bad input: eps out of range, NaN or probabilities from the model, a wrong class count, autocast.
    """
    recipe = recipe or parse(EvalRecipe, {"eps": tuple(eps), **settings}, "evaluate", TYPED)
    recipe = for_smoothed(recipe) if isinstance(model, Smoothed) else recipe
    engine = engine or Here()
    if recipe.workers is None and recipe.threads is None and engine != Here():
        recipe = recipe.model_copy(update={"threads": 1})  # as with workers: what is found depends on no number of cores
    split, clock = _as_split(model, data).sample(recipe.samples, recipe.seed, recipe.order), Clock(recipe.budget)
    exact = split.x.dtype in (torch.float32, torch.float64)
    if adversarials is None:
        adversarials = exact and not folder and split.x.numel() * split.x.element_size() <= KEPT
    if adversarials and isinstance(split.x, Stream) and split.x.numel() * split.x.element_size() > KEPT:
        raise UserError("adversarial images are kept beside all clean ones, which are too many here: choose fewer by samples")
    if adversarials and not exact:
        raise UserError(f"adversarial images are saved exactly as float32 or float64, found inputs of {split.x.dtype}")
    check_bits(bits, bool(adversarials), split.box, isinstance(model, Smoothed))
    own = folder_of(folder, name) if folder else None
    with listening(on_event), evaluating(model, device), ExitStack() as stack:
        nearest = Nearest() if adversarials else None
        emit(PhaseStarted(phase=f"preparing {name}"))
        identity = identity_of(model, split.shape, asked=recipe.budget is None)
        queried, whole = freeze(model), len(split)
        with full_precision():
            taken = chosen(queried, split.x, recipe, device, identity.key, own and own / "parts")
            stack.enter_context(threads(taken.count))
            split = sized(queried, split.to(device), clock, recipe.seed)
        named = (name, identity.weights, device, recipe.seed, identity.key)
        subject = Subject(model, queried, split, *named, images=nearest is not None)
        store = Store(own / "parts" if own else None, nearest, exchanged(parts, own), split.data)
        with full_precision():
            run = _Run(subject, recipe, None if twin is None else _transfer(twin, subject))
            run.note(command=command, key=identity.key, logits=identity.logits, threads=str(taken))
            if isinstance(model, Smoothed):
                run.note(smoothed=model.extra_repr())
            runner = Runner(subject, run.transfer)
            with started(engine, runner, loader, recipe.workers, store) as computing:
                run.note(device=describe(device) + searched_in(run.protocol, queried, split.x[:2]))
                log = JobLog(own and own / "jobs", engine.name)
                table, complete = run.all(computing, store, clock, log)
            if recipe.budget is not None:  # first facts first
                run.note(logits=fixed_logits(model, split.shape))
            if training is not None and complete:
                run.compare_training(training)
            if bits is not None and nearest is not None:
                round_nearest(subject, nearest, recipe.norm, run.epsilons, bits, recipe.block)
        emit(Finished(seconds=clock.passed(), complete=complete))
    if len(split) < whole and run.about.incomplete_because is None:
        run.note(incomplete_because="budget")
    left = {label: len(indices) for label, indices in sorted(store.outside.items())}
    about = run.about.but(complete=complete and len(split) == whole, outside=left)
    path = own / f"{recipe.norm}-{run.digest}.parquet" if own else None
    images = None
    if nearest is not None:
        header = {key: value for key, value in about.plain().items() if key in SAID} | {"split": split.split}
        images = nearest.adversarials(header, table, split.x[:].cpu().numpy(), split.index.cpu().numpy())
    evaluation = Evaluation(table, about, images, path, torch.from_numpy)
    if path is not None:
        verdicts.Published(Path(folder or "")).begin()
        evaluation = replace(evaluation, path=verdicts.keep(evaluation, path))
    if images is not None and isinstance(adversarials, str | Path):
        verdicts.write_adversarials(images, adversarials)
    return evaluation


def exchanged(url: str | None, own: Path | None) -> Exchange | None:
    """The exchange of an evaluation's parts below a URL. Raises UserError where there is no folder of its own to keep them in."""
    if url is None:
        return None
    if own is None:
        raise UserError(f"parts {url}: expected a folder beside it, where this machine keeps them")
    return Exchange(ObjectStore(url), own.name, own / "parts")


def _transfer(twin: nn.Module, subject: Subject) -> Transfer:
    """The attack of this twin. Raises UserError where it takes other images, knows other classes or is the model itself."""
    split, key = subject.split, key_of(twin)
    queried = freeze(copy.deepcopy(twin).eval().to(subject.device))
    if key == subject.key:
        raise UserError("twin: expected a network trained without the model's defence, found the model itself")
    try:
        logits = ask(queried, split.x, split.classes)
    except UserError as error:
        raise UserError(f"twin: {error}") from None
    return Transfer.by(queried, key, weights_digest({"logits": logits}))


def _as_split(model: nn.Module, data: Split | tuple[Tensor, Tensor]) -> Split:
    if isinstance(data, Split):
        if data.task == "regression":
            raise UserError(f"data set {data.data!r} is a regression: attacks and certificates need classes, which it has not")
        return data
    x = given_images(data[0]).to(next(model.parameters(), torch.zeros(1)).dtype)
    return given_split(x, given_labels(data[1], tuple(x.shape)), classes_of(model, x[:1]))


class _Run:
    """One evaluation under way."""

    def __init__(self, subject: Subject, recipe: EvalRecipe, transfer: Transfer | None = None) -> None:
        self.subject, self.recipe, self.transfer = subject, recipe, transfer
        split = subject.split
        largest = 1.0 if recipe.norm == "linf" else math.sqrt(math.prod(split.shape))
        for eps in recipe.eps:
            if eps > largest and split.box == "unit":
                hint = f": did you mean {eps:g}/255?" if 1 < eps <= 255 else ""
                line = f"eps {eps:g} is above the data range: no {recipe.norm} distance exceeds {largest:.4g} in [0, 1]{hint}"
                raise UserError(line)
        if not recipe.eps:
            raise UserError("expected at least one eps, found none")
        self.epsilons = sorted(set(recipe.eps), reverse=True)
        smoothed = isinstance(subject.queried, Smoothed)
        self.constant = None if smoothed or recipe.attacks else diagnosed_constant(subject.queried, split, subject.seed)
        self.protocol = protocol(recipe, split) if self.constant is None else protocol_of_constants(recipe.norm, split.box)
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
        settings = recipe.model_dump(mode="json", exclude={"budget", "workers", "threads"})  # which change no verdict
        others = [*([] if transfer is None else [transfer.key]), *filter(None, [own_code_digest(recipe)])]
        self.digest = digest_of([settings, subject.key, split.digest, sources_digest(), *others], 12)
        known: dict[str, Any] = {
            "model": subject.name,
            "norm": recipe.norm,
            "box": self.box,
            "epsilons": sorted(self.epsilons),
            "eps_text": [radius_text(eps) for eps in sorted(self.epsilons)],
            "protocol": self.labels,
            "certificates": [one.label for one in recipe.certificates],
            "samples": len(split),
            "seed": recipe.seed,
            "device": describe(subject.device),
            "date": date.today().isoformat(),
            "evaluator": verdicts.evaluator(),
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
            "data": split.data,
            "data_digest": split.digest,
            "pixels": math.prod(split.shape),
            "weights": subject.weights,
            "settings": settings,
            "refused": [],
            "failed": [],
            "breaches": [],
            "rechecked": {},
            "budget": recipe.budget,
            "marks": [] if isinstance(subject.queried, Smoothed) else [verdicts.UNDIAGNOSED],  # until it was diagnosed
            "twin": None if transfer is None else transfer.key,
            "job": self.digest,
        }
        self.about = About.read(known, "evaluate")
        self.right: int | None = None
        """How many images it classifies correctly."""

    def note(self, **fields: Any) -> None:
        """What is known now of the evaluation."""
        self.about = self.about.but(**fields)

    def compare_training(self, training: Split) -> None:
        """Note whether it is better on the test images than on training images; a smoothed model is not asked."""
        if self.right is None or isinstance(self.subject.queried, Smoothed):
            return
        found = above_training(self.subject.queried, training, self.right, len(self.subject.split), self.subject.device)
        marks = (*self.about.marks, *([found.name] if found.tripped else []))
        self.note(diagnostics=(*self.about.diagnostics, found), marks=marks)

    def ask_alone(self, work: Work, clock: Clock) -> None:
        """Find out whether answers depend on the batch, while there is time; the images are asked here, on no worker."""
        if clock.left() <= 0 or not len(work.index):
            return
        x, keys = self.subject.split.x, work.index.tolist()
        images = min(IMAGES, len(keys))
        with evaluating(self.subject.queried), work.follower.step("independence", "alone and in company", images) as step:
            found = independence(self.subject.queried, x, work.logits, keys, self.recipe.seed, self.recipe.block, clock)
            step.add(images)
            work.follower.tell(step)
        if found.tripped:
            emit(Message(text=f"every accuracy is withheld: {found.name}: {found.words}"))
            self.note(diagnostics=(found,), marks=(*self.about.marks, found.name))

    def all(self, engine: Engine, store: Store, clock: Clock, log: JobLog) -> tuple[pd.DataFrame, bool]:
        """Predictions, certificates, attacks, diagnosis; what there is when the keyboard interrupts or the budget is used up."""
        complete = False
        bounds = BoundsSoFar(self.subject.split.index.cpu().numpy(), self.epsilons, self.recipe.norm, self.box)
        follower = Follower(engine, bounds, clock)
        scheduler = Scheduler(engine, store, follower.seen, partial(instead, self.subject), log.note)
        work = Work(self.subject, self.recipe, self.box, scheduler, clock, follower)
        attacks: AttackPhase | None = None
        diagnosis: DiagnosisPhase | None = None
        work.predict()
        self.right = int(work.right.sum())
        if self.constant is not None:
            emit(Message(text=self.constant.words))
        if len(work.right) and not work.right.any():
            emit(Message(text=f"all {len(work.right)} images are misclassified as they are: robust accuracy is 0 at every eps"))
        first = FirstLook(work)
        try:
            first.all()
            certify = CertifyPhase(work, self.protocol)
            if work.right.any():
                certify.all()
            self.note(curve=certify.curve)
            first.hold_against_certificates()
            SecondLook(work).all()
            self.ask_alone(work, clock)
            work.logits = torch.zeros(0, 0)  # of which nobody asks any more
            attacks = AttackPhase(work, self.protocol, self.labels)
            attacks.all()
            about = self.about
            diagnosis = DiagnosisPhase(work, about, self.protocol, self.transfer, self.constant, about.diagnostics, about.marks)
            diagnosis.all()
            complete = True
        except KeyboardInterrupt:
            self.note(incomplete_because="interrupted")
            emit(Message(text="interrupted: the table holds what was finished; the same command goes on after it"))
        except OutOfTime:
            self.note(incomplete_because="budget")
            seconds = f"{self.recipe.budget:g} s"
            line = f"budget of {seconds} used up: the same command without it goes on from here, or with a larger one"
            emit(Message(text=line))
        except WorkerKilled as killed:
            self.note(incomplete_because="killed")
            emit(Message(text=str(killed)))
        if complete and work.scheduler.given_up:
            complete = False
            self.note(incomplete_because="killed")
        self.note(refused=tuple(work.refused), left_out=tuple(work.left_out))
        self.note(breaches=tuple(work.breaches), failed=tuple(work.errors))
        if attacks is not None:  # what was found before an interruption stays
            self.note(rechecked=attacks.rechecked)
        if diagnosis is not None:
            self.note(diagnostics=tuple(diagnosis.diagnostics), marks=tuple(diagnosis.marks))
        table = work.tables.merged()
        return (first.superseded(table) if complete else table), complete


def instead(subject: Subject, job: Job, why: str) -> Part | None:
    """The rows that stand for a job which no worker survived: its method failed on these images. They are tried again next time."""
    if job.phase == "attack":
        return given_up(subject, job, why)
    if job.phase == "certify":
        return Part(unproved(subject, job, "error"), Noticed(refused=(why,)))
    return None


def protocol(recipe: EvalRecipe, split: Split) -> list[Attack]:
    """The attacks of the evaluation, in the split's box where they name none; those of its `effort` where it names no attack.

    Raises UserError for an attack that keeps to [0, 1] inputs which do not.
    """
    named = recipe.attacks or protocol_of(recipe.effort, recipe.norm)
    if split.box == "unit":
        return list(named)
    attacks: list[Attack] = []
    for attack in named:
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
