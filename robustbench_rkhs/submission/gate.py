"""The submission gate: checks and evaluates a checkpoint or adversarial images, then updates the leaderboard or refuses."""

import hashlib
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustbench_rkhs import verdicts
from robustbench_rkhs.data import DataSet, arrays_digest
from robustbench_rkhs.evaluation.recipe import EvalRecipe
from robustbench_rkhs.evaluation.subject import Subject
from robustbench_rkhs.nodes.code_names import OURS_ALONE, SUBMITTED, is_code_name
from robustbench_rkhs.nodes.guard import guarded
from robustbench_rkhs.nodes.limits import STRANGERS, Limits
from robustbench_rkhs.nodes.missing import missing_folder
from robustbench_rkhs.nodes.names import folder_of
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.paths import checkpoints_folder, checkpoints_folders, models_folder
from robustbench_rkhs.nodes.radius_text import radius_text
from robustbench_rkhs.nodes.shipped import RECIPES
from robustbench_rkhs.reports.places import Places
from robustbench_rkhs.reports.update import update
from robustbench_rkhs.runtime.events import OnEvent, listening
from robustbench_rkhs.runtime.ignored import ignored
from robustbench_rkhs.runtime.locks import alone
from robustbench_rkhs.runtime.seals import read_record, sha256_of, write_record
from robustbench_rkhs.submission.accepted import accepted_model, copied, keep
from robustbench_rkhs.submission.adversarials import Judged, judge, named_by
from robustbench_rkhs.submission.bundle_names import ALLOWED, check_checkpoint
from robustbench_rkhs.submission.confined import Claims, evaluations
from robustbench_rkhs.submission.effect import refused_change, twin_on_board
from robustbench_rkhs.submission.foreseen import foreseen
from robustbench_rkhs.submission.look_alikes import looks_like
from robustbench_rkhs.submission.owners import check_owner, claimed, names_owned, owner_of
from robustbench_rkhs.training import checkpoint
from robustbench_rkhs.training.recipe import TrainRecipe
from robustbench_rkhs.verdicts import About, Brief, Evaluation
from robustbench_rkhs.zoo import SETS

ENDED = {"budget": "ran out of its budget", "interrupted": "was interrupted", "killed": "gave up jobs that no worker survived"}


class Incomplete(UserError):
    """An evaluation that ended before its end decides nothing: the same command with more time may accept the submission."""

    def __init__(self, line: str, because: str) -> None:
        super().__init__(line)
        self.because = because


class Held(UserError):
    """The leaderboard would change in a way that no submission may cause by itself: a person decides."""


def check(path: Path, limits: Limits = STRANGERS) -> str:
    """Check that a folder holds only weights and a recipe (no code, links or oversized files); its name. Raises UserError."""
    if is_code_name(str(path)) or path.suffix == ".py":
        raise UserError(f"expected a checkpoint folder, found code, {str(path)!r}: {OURS_ALONE}")
    if not path.is_dir():
        raise missing_folder("checkpoint folder", str(path), checkpoints_folders())
    if path.is_symlink():
        raise UserError(f"{path} is a link: expected the folder itself")
    entries = list(islice(path.iterdir(), 2 * len(ALLOWED)))
    for entry in sorted(entries):
        if entry.is_symlink() or not entry.is_file():
            raise UserError(f"{path}: {entry.name!r} is not a plain file")
        if entry.stat().st_size > limits.weights and entry.name != "resume.pt":
            raise UserError(f"{path}: {entry.name!r} is larger than {limits.weights:,} bytes (--limits weights=...)")
    check_checkpoint({entry.name for entry in entries} - {"resume.pt"}, str(path))
    name = path.resolve().name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
        raise UserError(f"{path}: expected a folder name of letters, digits, _ . - (64 at most)")
    return name


def known_data(recipe: TrainRecipe) -> DataSet:
    """The data set of a submitted recipe, which must be known by name. Raises UserError for a file, a folder or code."""
    if type(recipe.data) not in SETS.values():
        raise UserError(f"its recipe names its own data ({recipe.data.label}); expected one of the known sets: {', '.join(SETS)}")
    return recipe.data


def refusal(done: Evaluation) -> str | None:
    """The reason why this evaluation cannot be published; None if it can."""
    breaches = verdicts.breaches(done)
    if len(breaches):
        first = breaches.iloc[0].to_dict()
        return f"{len(breaches)} certified images were broken, first {first}: the proof or its arithmetic is wrong"
    if not done.about.complete:
        return f"the evaluation {ENDED.get(str(done.about.incomplete_because), 'ended early')}: images are untested"
    summary = verdicts.summary(done)
    if summary["robust"].isna().any():
        failed = f": {'; '.join(done.about.failed)}" if done.about.failed else ""
        return f"images are untested at some eps{failed}"
    return None


def submit(
    path: Path,
    recipe: EvalRecipe,
    *,
    sample: int,
    device: str,
    out: Path,
    command: str = "",
    limits: Limits = STRANGERS,
    on_event: OnEvent | None = None,
    approved: bool = False,
    sender: str = "",
    table: Path | None = None,
    seed: int | None = None,
    publish: bool = True,
) -> Iterator[str]:
    """Check, evaluate and publish a checkpoint; yields a progress line per step.

    Raises UserError with the reason for a refusal; the leaderboard is then unchanged. A name that looks like another one is
    refused, and so is one that belongs to another sender. The new leaderboard is computed first: if another row would change for
    any reason but adversarial images of its own function, the submission is held for manual review, its verdicts in
    OUT/submissions. A function already listed under another name keeps its row, which then shows both names. What is evaluated is
    a copy of the folder, which OUT/accepted keeps once it is accepted.
    `limits`: resource limits for its files and for its evaluation, which runs in a separate process. `on_event` is called with
    every event of the evaluation. `approved`: a person allows what would be held. `sender`: sha256 of the sender's public key,
    empty where it was sent without one; whoever sends a name first has it. `table`: the sender's own table (of any origin), with
    which the sample is compared. `seed`: of the sample's images; where not given it is drawn here, so that the sender cannot choose
    them, and a line says it. Where the full evaluation takes fewer images than there are, its own are those of the recipe, the same
    for everybody. `publish` False: nothing is written outside OUT/submissions, and the last line says what would be.
    """
    name = check(path, limits)
    said = checkpoint.described(path, SUBMITTED, limits)
    existing = _existing(out)
    own = _check_name(name, path, existing, names_owned(out))
    check_owner(out, name, sender)
    x, y = known_data(said.recipe).test_arrays()
    if (ours := arrays_digest(x, y)) != said.config.get("data_digest"):
        found = str(said.config.get("data_digest"))[:64]
        raise UserError(f"{path}: trained for data of digest {found}, ours is {ours}")
    new = publish and not own and all(one.about.model != name for one in existing)
    yield f"checked: {name}, {said.numbers:,} numbers, digest {said.weights[:12]}"
    staged = folder_of(ignored(out / "submissions"), name)
    with (
        alone(staged, "a submission"),
        claimed(out, name, sender, new, (Incomplete, Held)),
        copied(path, name, said.weights, staged, limits) as copy,
    ):
        seed = _drawn(staged, said.weights, sha256_of(table) if table else "") if seed is None else seed
        count = min(sample, len(y))
        looks = [recipe.model_copy(update={"samples": None if table else count, "seed": seed, "order": "stratified"}), recipe]
        told: list[str] = []
        claims = {"claims": Claims(table, count, seed, told.append)} if table else {}
        done = evaluations(copy, name, looks, device, staged, command, limits, **claims)
        with listening(on_event):
            first = next(done)
        if any(one.about.model == name and one.about.key != first.about.key and not own for one in existing) and (
            not sender or owner_of(out, name) != sender
        ):
            raise UserError(f"{name!r} is the name of another function on the leaderboard: choose another for the folder")
        _gate(first, name, staged)
        row = verdicts.summary(first).iloc[-1]
        images = len(verdicts.states(first, 0.0))
        line = f"sample of {images}: clean {row['clean']:.1%}, robust at {radius_text(row['eps'])} {row['robust']:.1%}"
        yield f"{line}; images drawn by the gate, seed {seed}"
        yield from told
        with listening(on_event):
            full = next(done)
        done.close()
        _gate(full, name, staged)
        if not own:
            full = replace(full, about=full.about.but(submitted=datetime.now(UTC).isoformat(timespec="seconds")))
        if not approved and (reason := foreseen(first, full)):
            raise Held(f"{name} is held for manual review: {reason} (verdicts kept in {staged})")
        if not approved:
            _check_effect(out, full, f"{name} is held for manual review", staged, own or _trained_here(name, said.weights, limits))
        if twin := twin_on_board(existing, full):
            yield f"the same function as {twin}, whose row stays: also evaluated as {name}"
        for words in (one.words for one in full.about.diagnostics if one.tripped and one.name == verdicts.TEST_ABOVE_TRAINING):
            yield f"marked: {words}"
        target = folder_of(out / "verdicts", name)
        published = target / (full.path or staged).name
        if publish:
            target.mkdir(parents=True, exist_ok=True)
            if not own:
                keep(copy, out, full.about.key)
            verdicts.Published(out / "verdicts").begin()
            if all(one.path != published for one in existing):  # else the same evaluation is already published
                verdicts.write(full, published)
    yield f"{name}: {_shares(full)}"
    if not publish:
        yield f"would be accepted: {name}; nothing was published"
    elif all(one.path != published for one in existing):
        shutil.rmtree(staged, ignore_errors=True)
        yield from _shown(out, f"accepted: {published}")


def _shares(full: Evaluation) -> str:
    """What the board says of an evaluation, at each eps."""
    rows = verdicts.summary(full).to_dict("records")
    found = [f"robust at {full.about.words(row['eps'])} {row['robust']:.1%}, certified {row['certified']:.1%}" for row in rows]
    clean, images = rows[0]["clean"], rows[0]["images"]
    return "; ".join([f"clean {clean:.1%}", *found, f"{images:,} images"])


def _drawn(staged: Path, weights: str, table: str) -> int:
    """A seed for the images of the sample, so that an evaluation out of its budget goes on.

    It is drawn anew for other weights and for another table of the sender's, who has been told the last one.
    """
    path = staged / f"drawn-{weights[:16]}-{table[:16]}.json"
    if path.is_file():
        return int(read_record(path)["seed"])
    seed = secrets.randbelow(2**31)
    write_record(path, {"seed": seed})
    return seed


def submit_adversarials(
    path: Path,
    *,
    model: str | None = None,
    weights: str | None = None,
    data: str | None = None,
    device: str,
    out: Path,
    command: str = "",
    limits: Limits = STRANGERS,
    approved: bool = False,
    publish: bool = True,
    known: Path | None = None,
) -> Iterator[str]:
    """Check submitted adversarial images; confirmed ones count against every evaluation of the same function.

    Yields progress lines. Raises UserError if the file is not valid or no image is confirmed; the leaderboard is then unchanged.
    `approved`: a person allows what would be held. `publish` False: nothing is written, and the last line says what would be.
    `known`: a folder of bundles that were merged, which hold the weights where OUT does not.
    """
    with guarded(path):
        stored = verdicts.read_adversarials(path, limits)
        model = model or (accepted_model(stored, out, known, limits) if weights is None else None)
        judged = judge(stored, named_by(stored, model, weights, data, limits), device)
    yield from judged.lines()
    if not judged.confirmed.any():
        raise UserError(f"{path} is refused: none of its {len(judged.reasons)} images is confirmed")
    done = as_evaluation(judged, path, device, command)
    if not approved:
        _check_effect(out, done, f"{path} is held for manual review", path)
    if not publish:
        yield f"would be accepted: {judged.confirmed.sum()} images of {judged.named.name}; nothing was published"
        return
    stem = f"{stored.about.norm}-{str(done.about.file_sha256)[:12]}"
    folder = verdicts.Published(out / "submitted").begin()
    written = verdicts.write(done, folder_of(folder, judged.named.name) / f"{stem}.parquet")
    yield from _shown(out, f"accepted: {judged.confirmed.sum()} images: {written}")
    if not any(one.about.epsilons and verdicts.same_function(one.about, done.about) for one in _existing(out)):
        name = judged.named.name
        yield f"{name} has not been evaluated here yet, so no row shows them; they count as soon as it is"


def _existing(out: Path) -> list[Brief]:
    """Every readable table of the board: evaluations, and adversarial images that were submitted."""
    places = Places(out)
    cache, unread = places.cache(), list[str]()
    return [*cache.read_all(places.verdicts, unread.append), *cache.read_all(places.submitted, unread.append)]


def _shown(out: Path, accepted: str) -> Iterator[str]:
    """Bring the reports up to date; the lines of an accepted submission."""
    found = update(out)
    yield from (f"not read: {line}" for line in found.unread)
    yield accepted
    yield f"leaderboard: {' '.join(map(str, found.written.get('leaderboard', [])))}"


def as_evaluation(judged: Judged, path: Path, device: str, command: str = "") -> Evaluation:
    """The confirmed images as an evaluation table, without protocol or eps; radii are those computed here."""
    stored, named, fine = judged.stored, judged.named, np.flatnonzero(judged.confirmed)
    with path.open("rb") as handle:
        sha = hashlib.file_digest(handle, "sha256").hexdigest()
    split, about = named.test, stored.about
    place = {index: number for number, index in enumerate(split.index.tolist())}
    part = split.take(torch.tensor([place[index] for index in stored.index[fine].tolist()], dtype=torch.int64))
    identity = judged.identity
    subject = Subject(named.model, named.model, part, named.name, identity.weights, device, 0, identity.key)
    positions, predicted = torch.arange(len(part)), stored.predicted[fine].tolist()
    both = {"norm": about.norm, "box": about.box}
    said = subject.rows(positions, predicted, **both)
    lengths = {"distance_l2": judged.distance_l2[fine], "distance_linf": judged.distance_linf[fine]}
    own = {"radius": lengths[f"distance_{about.norm}"], "settings": sha[:16], "forwards": 1} | lengths | both
    found = subject.rows(positions, predicted, kind="attack", method="submitted", **own)
    words: dict[str, Any] = {key: getattr(about, key) for key in ("data", "data_digest", "norm", "box")} | identity._asdict()
    words |= {"model": named.name, "epsilons": [], "protocol": [], "certificates": [], "samples": len(part), "seed": 0}
    words |= {"date": date.today().isoformat(), "device": device, "command": command, "versions": {"torch": torch.__version__}}
    words |= {"complete": True, "refused": [], "breaches": [], "file_sha256": sha, "header": about.plain()}
    return Evaluation(verdicts.merge([said, found]), About.read(words, str(path)))


def _check_name(name: str, path: Path, existing: list[Brief], owned: list[str]) -> str:
    """The name if this is the checkpoint of a recipe here, else empty. Raises UserError if it equals, or looks like, another's.

    Another's is a model that came with the package, is on the board, or has an owner; a recipe of the working directory alone is
    the user's own, so that what was trained from it may be sent as a folder and as a bundle.
    """
    trained = models_folder().resolve().parent / "checkpoints" / name
    if trained == path.resolve() and (models_folder() / f"{name}.yaml").is_file():
        return name
    if name in RECIPES:
        raise UserError(f"{name!r} is the name of a model that comes with the package: choose another for the folder")
    if other := looks_like(name, RECIPES | {one.about.model for one in existing} | set(owned)):
        raise UserError(f"{name!r} reads like {other!r}, which is listed: choose another for the folder")
    return ""


def _trained_here(name: str, weights: str, limits: Limits) -> str:
    """The name if these are the weights that were trained here from the user's own recipe of this name, else empty.

    A bundle of them may then replace the row of the user's own evaluation, as their folder may.
    """
    folder = checkpoints_folder() / name
    if not (folder / "config.json").is_file() or not (models_folder() / f"{name}.yaml").is_file():
        return ""
    with suppress(UserError):
        return name if checkpoint.described(folder, limits=limits).weights == weights else ""
    return ""


def _check_effect(out: Path, new: Evaluation, held: str, kept: Path, own: str = "") -> None:
    """Raises Held if the leaderboard would change in a way that no submission may cause."""
    if reason := refused_change(_existing(out), new, own, Places(out).cache()):
        raise Held(f"{held}: {reason} (kept in {kept})")


def _gate(done: Evaluation, name: str, staged: Path) -> None:
    reason = refusal(done)
    if reason is None:
        return
    line = f"{name} is refused: {reason} (verdicts kept in {staged})"
    if done.about.complete or len(verdicts.breaches(done)):
        raise UserError(line)
    raise Incomplete(line, done.about.incomplete_because or "unknown")
