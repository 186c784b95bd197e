"""rkhs-eval: certify and attack models."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from robustbench_rkhs.cli.command import AllowCode, AsJson, Names, Weights, command, failure, typed_command
from robustbench_rkhs.cli.condition import Condition
from robustbench_rkhs.cli.display import Quiet, shown
from robustbench_rkhs.cli.endings import code_of, completeness
from robustbench_rkhs.cli.engines import check_engine, chosen_engine, leading, submitted
from robustbench_rkhs.cli.screen import console_of_width, emit, folded, told
from robustbench_rkhs.cli.values import Device, EngineName, Folder, Target, numbers
from robustbench_rkhs.cli.warnings import warnings_of, whole_boxes
from robustbench_rkhs.evaluation.engine_choice import AnyEngine, Submitit, engine_from
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.paths import check_names
from robustbench_rkhs.runtime import events
from robustbench_rkhs.verifier.check import METHODS


def _evaluate(
    typed: dict[str, Any],
    /,
    model: Names,
    weights: Weights = None,
    data: str | None = None,
    name: str | None = None,
    mean: Names = (),
    std: Names = (),
    smooth: str | None = None,
    twin: str | None = None,
    allow_code: AllowCode = (),
    device: Device = "auto",
    out: Folder = Path("reports"),
    as_json: AsJson = False,
    require: Names = (),
    quiet: Quiet = False,
    save_certificates: Annotated[Folder | None, tyro.conf.arg(aliases=["--certificate"])] = None,
    save_adversarials: Target | None = None,
    bits: int | None = None,
    vnnlib: Folder | None = None,
    answers: Path | None = None,
    engine: EngineName = "here",
    parts: str | None = None,
) -> int:
    """Certify and attack models; print the table of verdicts; write it, the curve and the report.

    $ rkhs-eval --model robust_vgg --eps 1.0
    $ rkhs-eval --model digits_mlp digits_sandwich --eps 0.25 0.5 36/255 --attack pgd foolbox:attack=ddn --samples 200
    $ rkhs-eval --model robust_vgg --eps 0.25 0.5 1.0 --budget 10min
    $ rkhs-eval --model mypackage.nets:build --weights net.safetensors --data mine.npz --eps 8/255 --norm linf
    $ rkhs-eval --model digits_smoothed --smooth sigma=0.25,n=10000 --eps 0.1 0.25 0.5

    Without --attack: the certificates, cheap minimal-norm attacks, then the ensemble on the open images, each at its largest
    open eps. Ctrl-C, or the end of --budget, leaves a valid partial table; the same command goes on from there.
    Every field of the evaluation's recipe is a flag. Exit code 0: the evaluation is complete; 1: a condition of --require does not
    hold, a certified image was broken, or every attack of the protocol failed; 2: bad input, in one line; 3: the budget ended
    first, and no condition is known to fail; 130: interrupted, what was judged is in the table and nothing is drawn.

    Args:
        model: Names in checkpoints/, checkpoint folders, package.module:builder, or FILE.onnx.
        weights: Weights for a recipe or builder: .safetensors or .pth (.pt .ckpt .bin ...); FILE:state_dict[0] for a part of it.
        data: Data set or FILE.npz instead of the recipe's.
        name: What the model is called in tables and files; by default after its checkpoint, builder or file.
        mean: Normalisation of a network that has none of its own: a number, or one per channel, in units of pixels in [0, 1]. It
            becomes the first layer, part of the function and its key.
        std: Standard deviations, as --mean: (x - mean) / std.
        smooth: sigma=0.25,n=10000,...: evaluate the vote under Gaussian noise, certified; see rkhs-list certificates smoothing.
        twin: A model as for --model, of the same data and classes but trained without defence: its adversarial images are tried
            on every survivor (transfer attack). Cost: at most 330 passes per image and eps.
        allow_code: Your own packages, modules, folders or .py files whose code a checkpoint folder may name and import.
        device: auto, cpu, cuda, cuda:1 ...; cuda:0,cuda:1 computes on both.
        out: Folder for results: verdicts/MODEL/ gets the table, local/ the figures of the run; git ignores both until
            rkhs-report --publish MODEL.
        as_json: Print one JSON object on stdout, the tables on stderr.
        require: Conditions such as "robust@1.0>=0.45"; exit code 1 where one does not hold.
        save_certificates: Folder that gets NAME/proof.json and proof.npz, which rkhs-verify re-checks without this package.
        save_adversarials: FILE.npz, or a folder that gets NAME-NORM.npz: the nearest adversarial image of each image, over all
            attacks; rkhs-verify re-checks it, rkhs-report --adversarials draws it.
        bits: With --save-adversarials: 8 rounds them to pixels k/255 where they stay adversarial within their eps; the file's
            array `bits` is 8 for these, and 0 for those saved as they were found.
        vnnlib: Folder that gets each open image as VNN-LIB beside the network as ONNX, for verifiers of others (--norm linf).
        answers: CSV of such a verifier's answers about the files in --vnnlib: counted as foreign, never among the verdicts; a
            contradiction ends with exit code 1.
        engine: What computes: here; torchrun or srun, in each process that these start; submitit:tasks=8,partition=NAME, a Slurm
            job array; ray:gpus=1, a cluster. The table is the same with any of them.
        parts: URL of an object store (s3://bucket/evaluations, gs://, az://) below which machines that share no disk exchange
            finished parts, whole and sealed; each has an OUT of its own beside it.
    """
    check_engine(array := engine_from(engine), str(typed.get("workers")).lower() not in ("none", "null"), parts)
    if isinstance(array, Submitit):
        return submitted(array, device, quiet)
    check_names(model, weights, data)
    check_names([] if twin is None else [twin])
    conditions = [Condition.read(text) for text in require]
    from robustbench_rkhs.cli.settings import eval_recipe
    from robustbench_rkhs.nodes.code_names import TYPED
    from robustbench_rkhs.zoo import load_model, load_twin, normalised, smoothed, smoothing_from
    from robustbench_rkhs.zoo.loaders import Typed

    if name is not None and len(model) > 1:
        raise UserError(f"--name: {name!r} is one name for {len(model)} models; evaluate them one by one")
    means, stds = numbers("--mean", mean), numbers("--std", std, positive=True)
    votes: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    if smooth is not None:
        counted, one = smoothing_from(smooth, eval_recipe({"eps": typed["eps"], "seed": typed.get("seed", 0)}, "rkhs-eval").seed)
        votes, defaults = {"sigma": one.sigma, **counted}, {"certificates": [one]}
    recipe = eval_recipe(typed, "rkhs-eval", TYPED, **defaults)
    _check_outputs(recipe, conditions, len(model), save_certificates, save_adversarials)
    if bits is not None and (save_adversarials is None or not 1 <= bits <= 16):
        raise UserError("--bits: expected 1 to 16, beside --save-adversarials, whose images are rounded")
    if answers is not None and vnnlib is None:
        raise UserError("--answers: expected --vnnlib beside it, the folder with the files that the answers are about")
    choice, where = chosen_engine(engine, device)
    failed, results, reasons = False, list[dict[str, Any]](), list[str | None]()
    with leading(choice) as leads, shown(screen := console_of_width(120, stderr=as_json), quiet or not leads):
        subjects = [normalised(load_model(one, weights, data, allow_code), means, stds) for one in model]
        subjects = subjects if name is None else [replace(one, name=name) for one in subjects]
        other = None if twin is None else load_twin(twin, data, subjects, allow_code)
        if not leads:
            save_certificates = save_adversarials = vnnlib = None
        files = (save_certificates, save_adversarials, bits, vnnlib, answers)
        run = _Run(recipe, conditions, screen, where, out, other, *files, choice, parts, leads)
        loaders = [Typed(one, weights, data, tuple(allow_code), votes or None, means, stds) for one in model]
        for subject, loader in zip([smoothed(one, **votes) for one in subjects] if votes else subjects, loaders, strict=True):
            found, broke, reason = run.of(subject, loader)
            failed |= broke
            results.append(found)
            reasons.append(reason)
            if reasons[-1] == "interrupted":
                break
    if as_json and leads:
        emit({"evaluations": results, "complete": len(results) == len(subjects) and all(one["complete"] for one in results)})
    return code_of(failed, reasons)


def _check_outputs(
    recipe: Any, conditions: list[Condition], models: int, certificates: Path | None, adversarials: Path | None
) -> None:
    """Checks before any model is loaded: conditions at other eps, files that cannot be written. Raises UserError."""
    for condition in conditions:
        condition.answerable(recipe.eps)
    if certificates is not None and not any(one.label.partition("#")[0] in METHODS for one in recipe.certificates):
        names = f"{', '.join(METHODS[:-1])} or {METHODS[-1]}"
        raise UserError(f"--save-certificates: certificate files need radii of --certify {names}")
    if adversarials is not None and adversarials.suffix == ".npz" and models > 1:
        raise UserError(f"--save-adversarials: {adversarials} is one file for {models} models; expected a folder")


@dataclass(frozen=True)
class _Run:
    """The options that are the same for every model of the command."""

    recipe: Any
    conditions: list[Condition]
    screen: Any
    device: str
    out: Path
    twin: Any
    save_certificates: Path | None
    save_adversarials: Path | None
    bits: int | None
    vnnlib: Path | None
    answers: Path | None
    engine: AnyEngine
    parts: str | None
    leads: bool
    """Whether this process writes figures and files: of several ranks, the first."""

    def of(self, subject: Any, loader: Any) -> tuple[dict[str, Any], bool, str | None]:
        """Evaluates one model, prints its tables and writes its files. Returns its JSON, whether it fails the command, and why
        it is not complete."""
        from robustbench_rkhs.zoo import evaluate

        asked, norm = sorted(set(self.recipe.eps)), self.recipe.norm
        for line in whole_boxes(asked, norm, subject.test.box, math.prod(subject.test.shape)) if self.leads else ():
            told(self.screen, line)
        saved = self.save_adversarials
        if saved is not None and saved.suffix != ".npz":
            saved = saved / f"{subject.name}-{self.recipe.norm}.npz"
        done = evaluate(
            subject.model,
            subject.test,
            self.recipe,
            name=subject.name,
            folder=self.out / "verdicts",
            adversarials=saved,
            bits=self.bits,
            twin=self.twin,
            device=self.device,
            command=typed_command(),
            loader=loader,
            engine=self.engine,
            parts=self.parts,
        )
        stopped = done.about.incomplete_because == "interrupted"
        more = {} if saved is None else {"adversarials": [saved]}
        written = _shown(self.screen, done, self.out, more, drawn=self.leads and not stopped)
        if self.save_certificates is not None and not stopped:
            self._write_proof(subject, done, self.save_certificates / subject.name)
        failed = _failed(self.screen, done, self.conditions)
        if self.vnnlib is not None and not stopped:
            failed |= self._foreign(subject, done, self.vnnlib)
        return _plain(done, written), failed, done.about.incomplete_because

    def _foreign(self, subject: Any, done: Any, folder: Path) -> bool:
        """Writes the open images for verifiers of others, or reads their answers; whether one contradicts a verdict."""
        from robustbench_rkhs.zoo.vnnlib import read_answers, write_vnnlib

        if self.answers is None:
            told(self.screen, f"vnnlib: {write_vnnlib(subject.model, subject.test, done, folder)}")
            return False
        found = read_answers(self.answers, done, folder)
        for line in found.lines:
            told(self.screen, line)
        return found.contradictions > 0

    def _write_proof(self, subject: Any, done: Any, folder: Path) -> None:
        from robustbench_rkhs.proofs import write_proof

        sample = subject.test.sample(self.recipe.samples, self.recipe.seed, self.recipe.order)
        found = write_proof(subject.model, sample, done, folder)
        held = []
        for eps, row in zip(sorted(set(self.recipe.eps)), done.summary().to_dict("records"), strict=True):
            count, whole = int((found.radius >= eps).sum()), row["count_certified"]
            more = "" if count >= whole else ", the others by radii that such files do not hold"
            held.append(f"{count} of {whole} certified at {done.about.words(eps)}{more}")
        told(self.screen, f"certificate: {folder} (verified: {'; '.join(held)})")


def _shown(screen: Any, done: Any, out: Path, more: Mapping[str, list[Path]], drawn: bool) -> dict[str, list[Path]]:
    """Print the tables and warnings, and write the reports if `drawn`; returns the files by kind."""
    from robustbench_rkhs.reports.places import Places
    from robustbench_rkhs.reports.tables import console, console_attacks, console_certificates, not_needed
    from robustbench_rkhs.reports.update import draw_run

    if done.about.certificates:
        screen.print(console_certificates(done))
    if (attacks := console_attacks(done)).row_count:
        screen.print(attacks)
    if idle := not_needed(done):
        told(screen, idle)
    screen.print(console(done))
    for line in warnings_of(done):
        told(screen, line)
    places, figures = Places(out), dict[str, list[Path]]()
    if drawn:
        events.emit(events.PhaseStarted(phase="drawing the report"))
        try:
            figures = draw_run(places, places.cache().read(done.path))
        except KeyboardInterrupt:
            told(screen, f"verdicts: {done.path} (interrupted as its figures were drawn)")
            raise
    written = {**figures, **more}
    for kind, paths in {"verdicts": [done.path], **written}.items():
        told(screen, f"{kind}: {' '.join(folded(paths))}")
    return written


def _failed(screen: Any, done: Any, conditions: list[Condition]) -> bool:
    """Whether the command fails: conditions that do not hold, broken certificates, or a protocol in which every attack failed.

    An undecided condition fails if the evaluation is complete: more time would not decide it.
    """
    from robustbench_rkhs.verdicts import protocol_failed

    checked = [condition.check(done) for condition in conditions]
    for _, line in checked:
        told(screen, line)
    for line in done.about.failed:
        failure(line)
    if whole := protocol_failed(done):
        failure(f"{done.about.model}: every attack of the protocol failed; nothing is known about its robustness")
    held = [done.about.complete is False if one is None else one for one, _ in checked]
    return whole or bool(done.about.breaches) or not all(held)


def _plain(done: Any, written: Mapping[str, list[Path]]) -> dict[str, Any]:
    """An evaluation as --json prints it."""
    from robustbench_rkhs import verdicts

    tables = {"summary": verdicts.summary, "certificates": verdicts.by_certificate, "attacks": verdicts.by_attack}
    return {
        "about": {**done.about.plain(), "path": str(done.path)},
        **completeness(done.about),
        "failed": done.about.failed,
        **{name: json.loads(table(done).to_json(orient="records")) for name, table in tables.items()},
        "digest": verdicts.digest(done.table),
        "files": written,
    }


main = command(_evaluate, recipe={})
