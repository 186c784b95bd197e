"""The commands: signatures and printing. Everything heavy is imported inside them, so that --help is quick."""

import errno
import functools
import json
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from robustbench_rkhs.node import Real, UserError, real

Names = tuple[str, ...]


def command(main: Callable[..., int | None], overrides: bool = False) -> Callable[[], None]:
    """A console script: flags from the signature, one line and exit code 2 for bad input."""

    @functools.wraps(main)
    def script() -> None:
        try:
            if overrides:
                call, rest = tyro.cli(_bound(main), return_unknown_args=True)
                code = call(_pairs(rest))
            else:
                code = tyro.cli(_bound(main))()
        except UserError as error:
            _fail(str(error))
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 1
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            _fail(f"cannot write {error.filename or ''}: {error.strerror}")
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from here", file=sys.stderr)
            code = 130
        raise SystemExit(code or 0)

    return script


def _bound(main: Callable[..., Any]) -> Callable[..., Callable[..., Any]]:
    """`main`'s signature, returning a call, so that tyro's own errors and ours stay apart."""

    @functools.wraps(main)
    def bind(*args: Any, **kwargs: Any) -> Callable[..., Any]:
        return functools.partial(main, *args, **kwargs)

    bind.__annotations__ = {k: v for k, v in main.__annotations__.items() if k not in ("return", "fields")}
    import inspect

    signature = inspect.signature(main)
    kept = [p for p in signature.parameters.values() if p.name != "fields"]
    bind.__signature__ = signature.replace(parameters=kept, return_annotation=Callable)  # type: ignore[attr-defined]
    return bind


def _fail(line: str) -> None:
    print(f"error: {line}", file=sys.stderr)
    raise SystemExit(2)


def _pairs(rest: list[str]) -> dict[str, str]:
    """`--attack.eps 1.0` and `--attack.eps=1.0` as a mapping."""
    fields, position = {}, 0
    while position < len(rest):
        flag, equals, value = rest[position].partition("=")
        if not flag.startswith("--"):
            raise UserError(f"unexpected argument {rest[position]!r}; expected flags such as --epochs 3 or --attack.eps 1.0")
        if not equals:
            position += 1
            if position == len(rest):
                raise UserError(f"{flag} needs a value")
            value = rest[position]
        fields[flag[2:]] = value
        position += 1
    return fields


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} cannot be used here: {str(error).splitlines()[0][:100]}") from None
    return name


def _typed() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _train(
    fields: dict[str, str], /, model: str, out: Path | None = None, device: str = "auto", fresh: bool = False, half: bool = False
) -> None:
    """Train a named model. Every field of its recipe is a flag: --epochs 3 --attack.eps 1.0 --data.train 1000.

    $ rkhs-train --model digits_mlp --out checkpoints/mine
    $ rkhs-train --model robust_vgg --epochs 20 --attack.steps 2
    $ torchrun --nproc-per-node 2 --no-python rkhs-train --model digits_mlp
    `rkhs-list models digits_mlp` shows a recipe with every field. A training that was stopped goes on from where it was.

    Args:
        model: Name in models/, or path of a YAML recipe.
        out: Checkpoint folder; checkpoints/MODEL where not given.
        device: auto, cpu, cuda, cuda:1 ...
        fresh: Train anew over what the folder holds.
        half: Store the weights in half precision.
    """
    from robustbench_rkhs.progress import TrainingBar
    from robustbench_rkhs.recipe import TrainRecipe
    from robustbench_rkhs.train import train as run

    recipe = TrainRecipe.read(model, fields)
    folder = out or Path("checkpoints") / Path(model).stem
    leads = os.environ.get("RANK", "0") == "0"  # torchrun's other processes work silently
    with TrainingBar(recipe.epochs, quiet=not leads) as bar:
        run(recipe, folder, device=_device(device), command=_typed(), fresh=fresh, half=half, report=bar.report)
    if leads:
        print(f"checkpoint: {folder}")


def _evaluate(
    model: Names,
    eps: Names,
    norm: Literal["l2", "linf"] = "l2",
    attack: Names = (),
    effort: Literal["quick", "adaptive", "standard"] = "standard",
    budget: str | None = None,
    certify: Names = ("portfolio",),
    certify_seconds: float | None = None,
    smooth: str | None = None,
    samples: int | None = None,
    seed: int = 0,
    block: int = 64,
    device: str = "auto",
    checkpoint: str | None = None,
    data: str | None = None,
    out: Path = Path("reports"),
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
    require: Names = (),
    certificate_files: Annotated[Path | None, tyro.conf.arg(name="certificate")] = None,
    save_adversarials: Path | None = None,
) -> int:
    """Certify and attack models; print the table of verdicts; write it, the curve and the report.

    $ rkhs-eval --model robust_vgg --eps 1.0
    $ rkhs-eval --model digits_mlp digits_sandwich --eps 0.25 0.5 36/255 --attack pgd foolbox:attack=ddn --samples 200
    $ rkhs-eval --model robust_vgg --eps 0.25 0.5 1.0 --budget 10min
    $ rkhs-eval --model mypackage.nets:build --checkpoint net.safetensors --data mine.npz --eps 8/255 --norm linf
    $ rkhs-eval --model digits_smoothed --smooth sigma=0.25,n=10000 --eps 0.1 0.25 0.5
    Without --attack: the certificates, cheap minimal-norm attacks, then the ensemble on what is open, each image at its largest
    open eps. Ctrl-C, or the end of --budget, leaves a valid partial table; the same command goes on from there.

    Args:
        model: Names in checkpoints/, checkpoint folders, or package.module:builder.
        eps: Radii, in pixels of [0, 1]; 36/255 is a number.
        norm: Distance they are measured in.
        attack: NAME or NAME:field=value,...; see rkhs-list attacks.
        effort: The attacks where none is named. quick: minimal-norm attacks alone; adaptive: the ensemble where it may pay.
        budget: Time such as 90s, 10min, 2h: nothing further is begun after it; what is not reached stays untested.
        certify: NAME or NAME:field=value,..., cheapest first; portfolio: all of them; none. See rkhs-list certificates.
        certify_seconds: Time limit of each certificate; images it does not reach are marked timeout.
        smooth: sigma=0.25,n=10000,...: evaluate the vote under Gaussian noise, certified; see rkhs-list certificates smoothing.
        samples: Test images, a seeded stratified subset; all where not given.
        seed: Which images, and every random draw.
        block: Images a block, the unit of resuming.
        device: auto, cpu, cuda, cuda:1 ...
        checkpoint: Weights (.safetensors, or .pth of a plain state dict) for a recipe or builder.
        data: Data set or FILE.npz in place of the recipe's.
        out: Where verdicts and reports go.
        as_json: Print one JSON object on stdout, the tables on stderr.
        require: Conditions such as "robust@1.0>=0.45"; exit code 1 where one does not hold.
        certificate_files: Folder that gets NAME/proof.json and proof.npz, which rkhs-verify re-checks without this package.
        save_adversarials: FILE.npz, or a folder that gets NAME-NORM.npz: the nearest adversarial image of each image, over all
            attacks; rkhs-verify re-checks it, rkhs-report --adversarials draws it.
    """
    from rich.console import Console

    from robustbench_rkhs import verdicts
    from robustbench_rkhs.evaluate import evaluate
    from robustbench_rkhs.recipe import EvalRecipe, attack_from, certificate_from, parse
    from robustbench_rkhs.report import report as write_reports
    from robustbench_rkhs.report.tables import console, console_attacks, console_certificates
    from robustbench_rkhs.subjects import load_model, smoothed, smoothing_from

    conditions = [Condition.read(text) for text in require]
    settings = {
        "norm": norm,
        "eps": [_number(text) for text in eps],
        "attacks": [attack_from(text) for text in attack],
        "effort": effort,
        "budget": budget,
        "certificates": [one for one in map(certificate_from, certify) if one != "none"],
        "certify_seconds": certify_seconds,
        "samples": samples,
        "seed": seed,
        "block": block,
    }
    votes: dict[str, Any] = {}
    if smooth is not None:
        counted, one = smoothing_from(smooth, seed)
        votes = {"sigma": one.sigma, **counted}
        if certify == ("portfolio",):
            settings["certificates"] = [one]
    recipe = parse(EvalRecipe, settings, "rkhs-eval")
    if certificate_files is not None and not {"margin", "liplt", "eclipse"} & {one.label for one in recipe.certificates}:
        raise UserError("--certificate: certificate files need the radii of --certify margin, liplt or eclipse")
    screen = Console(stderr=as_json, soft_wrap=True)
    if not screen.is_terminal:
        screen.width = 120
    where, failed, results = _device(device), 0, []
    if save_adversarials is not None and save_adversarials.suffix == ".npz" and len(model) > 1:
        raise UserError(f"--save-adversarials: {save_adversarials} is one file for {len(model)} models; expected a folder")
    subjects = [load_model(name, checkpoint, data) for name in model]
    for subject in [smoothed(one, **votes) for one in subjects] if votes else subjects:
        saved = save_adversarials
        if saved is not None and saved.suffix != ".npz":
            saved = saved / f"{subject.name}-{norm}.npz"
        done = evaluate(
            subject.model,
            subject.test,
            recipe,
            name=subject.name,
            folder=out / "verdicts",
            adversarials=saved,
            device=where,
            command=_typed(),
            say=lambda line: screen.print(line, markup=False, highlight=False),
        )
        screen.print(console(done))
        if len(recipe.certificates) > 1:
            screen.print(console_certificates(done))
        screen.print(console_attacks(done))
        written = write_reports([done], out, leaderboard=False)
        for line in _warnings(done):
            screen.print(line, markup=False, highlight=False)
        written |= {} if saved is None else {"adversarials": [saved]}
        for kind, paths in {"verdicts": [Path(done.about["path"])], **written}.items():
            shown = " ".join(str(path) for path in paths)
            screen.print(f"{kind}: {shown}", markup=False, highlight=False)
        if certificate_files is not None:
            from robustbench_rkhs.proofs import write_proof

            write_proof(subject.model, subject.test.sample(samples, seed), done, certificate_files / subject.name)
            screen.print(f"certificate: {certificate_files / subject.name} (verified)", markup=False, highlight=False)
        for condition in conditions:
            held, line = condition.check(done)
            failed += not held
            screen.print(line, markup=False, highlight=False)
        failed += len(done.about["breaches"]) > 0
        results.append(
            {
                "about": done.about,
                "summary": json.loads(verdicts.summary(done).to_json(orient="records")),
                "certificates": json.loads(verdicts.by_certificate(done).to_json(orient="records")),
                "attacks": json.loads(verdicts.by_attack(done).to_json(orient="records")),
                "digest": verdicts.digest(done.table),
                "files": {kind: [str(path) for path in paths] for kind, paths in written.items()},
            }
        )
    if as_json:
        print(json.dumps({"evaluations": results}))
    return 1 if failed else 0


def _warnings(done: Any) -> list[str]:
    from robustbench_rkhs import verdicts

    lines = []
    if not done.about["complete"]:
        lines.append("incomplete: robust accuracy is withheld where images are untested")
    if done.about["budget"] and not done.about["complete"]:
        counts = verdicts.summary(done)
        left = zip(counts["eps"], counts["count_untested"], strict=True)
        untested = ", ".join(f"{count} at {eps:.4g}" for eps, count in left if count)
        lines.append(
            f"budget used up with images untested: {untested or 'none'}; the same command without --budget goes on from here"
        )
    if (sampled := done.about["rechecked"])["pairs"]:
        lines.append(f"inferred survivals attacked at their own eps: {sampled['pairs']}, of which {sampled['fell']} fell")
    claims = done.table[(done.table["kind"] == "certificate") & (done.table["radius"] > 0)]
    if chance := float(claims["failure_probability"].max() if len(claims) else 0):
        lines.append(f"certified by chance: each claim about an image is wrong with probability at most {chance:g}")
    lines += [f"DOUBTFUL {line}" for line in verdicts.doubts(done)]
    if done.about["breaches"]:
        lines.append(f"UNSOUND: {len(done.about['breaches'])} certified images were broken; nothing of this may be published")
        lines += [str(breach) for breach in done.about["breaches"][:5]]
    return lines


class Condition:
    """`robust@1.0>=0.45`: what a summary must satisfy."""

    FORM = re.compile(r"^\s*(clean|robust|certified)\s*(?:@\s*([0-9./e-]+))?\s*(>=|<=|>|<)\s*([0-9.e/-]+)\s*$")

    def __init__(self, text: str, quantity: str, eps: float, sign: str, bound: float) -> None:
        self.text, self.quantity, self.eps, self.sign, self.bound = text, quantity, eps, sign, bound

    @classmethod
    def read(cls, text: str) -> "Condition":
        found = cls.FORM.match(text)
        if not found or (found[2] is None and found[1] != "clean"):
            raise UserError(f"--require: expected a condition such as 'robust@1.0>=0.45', found {text!r}")
        return cls(text, found[1], _number(found[2] or "0"), found[3], _number(found[4]))

    def check(self, done: Any) -> tuple[bool, str]:
        from robustbench_rkhs import verdicts

        if self.quantity == "robust" and self.eps not in done.about["epsilons"]:
            raise UserError(f"--require {self.text!r}: eps {self.eps:g} was not evaluated; evaluated: {done.about['epsilons']}")
        value = float(verdicts.summary(done, [self.eps])[self.quantity].iloc[0])
        held = {
            ">=": value >= self.bound,
            "<=": value <= self.bound,
            ">": value > self.bound,
            "<": value < self.bound,
        }[self.sign]
        found = "withheld (images are untested)" if value != value else f"{value:.4f}"
        return held, f"required {self.text}: found {found}, {'holds' if held else 'DOES NOT HOLD'}"


def _number(text: str) -> Real:
    try:
        return float(real(text))
    except ValueError:
        raise UserError(f"expected a number or a fraction such as 36/255, found {text!r}") from None


def _report(
    out: Path = Path("reports"), model: Names = (), adversarials: tuple[Path, ...] = (), data: str | None = None, images: int = 8
) -> None:
    """Redraw every curve, table, trade-off plot and the leaderboard from the verdicts alone, and the nearest adversarial images.

    $ rkhs-report
    $ rkhs-report --adversarials mine.npz

    Args:
        out: The folder that holds verdicts/, and where reports go.
        model: Only these models; all where not given.
        adversarials: Files that rkhs-eval --save-adversarials wrote, drawn as OUT/pictures/nearest-NAME.*; where not given, those
            in OUT/adversarials.
        data: Data set or FILE.npz that the adversarial images are of, where their files do not name one.
        images: Adversarial images in a picture.
    """
    from robustbench_rkhs import verdicts
    from robustbench_rkhs.report import report as write_reports

    if images < 1:
        raise UserError(f"--images: expected at least 1, found {images}")

    found = [done for done in verdicts.read_all(out / "verdicts") if not model or done.about["model"] in model]
    if not found and not adversarials:
        raise UserError(f"no verdicts in {out / 'verdicts'}: run rkhs-eval first")
    written = write_reports(found, out) if found else {}
    for file in adversarials or sorted((out / "adversarials").glob("*.npz")):
        from robustbench_rkhs.pictures import nearest_picture

        try:
            written.setdefault("nearest", []).extend(nearest_picture(file, out / "pictures", data, images))
        except UserError as error:
            if adversarials:
                raise
            print(f"not drawn: {error}")
    for kind, paths in written.items():
        print(f"{kind}: {' '.join(str(path) for path in paths)}")


def _rank(model: Names, data: str | None = None, device: str = "auto", out: Path = Path("reports")) -> None:
    """auROC and auROC50 of models that rank (protein homology), on the test set; written to OUT/ranking/MODEL.json.

    $ rkhs-rank --model protein_1_34

    Args:
        model: Names in checkpoints/, checkpoint folders, or package.module:builder.
        data: Data set in place of the recipe's.
        device: auto, cpu, cuda, cuda:1 ...
        out: Where reports go.
    """
    from datetime import date

    from robustbench_rkhs.checkpoint import weights_digest
    from robustbench_rkhs.files import write_text
    from robustbench_rkhs.ranking import rank_report
    from robustbench_rkhs.subjects import load_model

    where = _device(device)
    for name in model:
        subject = load_model(name, None, data)
        found = rank_report(subject.model.to(where), subject.test.to(where))
        about = {
            "model": subject.name,
            "data": subject.test.data,
            "data_digest": subject.test.digest,
            "weights": weights_digest(subject.model.state_dict()),
            "seed": subject.seed,
            "date": date.today().isoformat(),
            "command": _typed(),
        }
        path = out / "ranking" / f"{subject.name}.json"
        write_text(path, json.dumps(found | about, indent=2) + "\n")
        print(
            f"{subject.name}: auROC {found['auroc']:.4f}, auROC50 {found['auroc50']:.4f} "
            f"({found['members']} members among {found['others']} others of {subject.test.data} test): {path}"
        )


def _listing(
    kind: Annotated[
        Literal["all", "models", "attacks", "certificates", "losses", "penalties", "samplers", "projections", "networks", "data"],
        tyro.conf.Positional,
    ] = "all",
    name: Annotated[str | None, tyro.conf.Positional] = None,
) -> None:
    """What there is: models, attacks, certificates, losses ... With a name: its card, or a model's whole recipe.

    $ rkhs-list
    $ rkhs-list attacks pgd

    Args:
        kind: One kind, or all.
        name: One of that kind.
    """
    from robustbench_rkhs.listing import listing

    print(listing(kind, name))


def _submit(
    what: Annotated[Literal["checkpoint", "adversarials"], tyro.conf.Positional],
    path: Annotated[Path, tyro.conf.Positional],
    eps: Names = (),
    norm: Literal["l2", "linf"] = "l2",
    attack: Names = (),
    sample: int = 100,
    samples: int | None = None,
    device: str = "auto",
    out: Path = Path("reports"),
    model: str | None = None,
    weights: str | None = None,
    data: str | None = None,
) -> None:
    """Check what a stranger sends and put it on the leaderboard: a checkpoint folder, evaluated on a sample and then in full; or
    adversarial images of a model here, of which those that rkhs-verify confirms count.

    $ rkhs-submit checkpoint path/to/folder --eps 0.5 1.0
    $ rkhs-submit adversarials theirs.npz

    Args:
        what: What is submitted.
        path: Folder of model.safetensors, config.json and recipe.yaml; never code. Or FILE.npz as --save-adversarials writes it.
        eps: Radii, in pixels of [0, 1].
        norm: Distance they are measured in.
        attack: As for rkhs-eval.
        sample: Images of the first look.
        samples: Images of the full evaluation; all where not given.
        device: auto, cpu, cuda ...
        out: Where verdicts and the leaderboard are.
        model: Of adversarial images: the model, where it is none of checkpoints/.
        weights: Of adversarial images: weights for a recipe or builder.
        data: Of adversarial images: data set or FILE.npz.
    """
    from robustbench_rkhs.recipe import EvalRecipe, attack_from, parse
    from robustbench_rkhs.submission.gate import submit as run
    from robustbench_rkhs.submission.gate import submit_adversarials

    if what == "adversarials":
        named = {"model": model, "weights": weights, "data": data}
        for line in submit_adversarials(path, **named, device=_device(device), out=out, command=_typed()):
            print(line)
        return
    if not eps:
        raise UserError("--eps: expected at least one radius, found none")
    settings = {
        "norm": norm,
        "eps": [_number(text) for text in eps],
        "attacks": [attack_from(text) for text in attack],
        "samples": samples,
        "block": 64,
    }
    recipe = parse(EvalRecipe, settings, "rkhs-submit")
    for line in run(path, recipe, sample=sample, device=_device(device), out=out, command=_typed(), say=print):
        print(line)


def _norms(
    model: str,
    samples: int | None = None,
    eps: Names = ("0.1", "0.5", "1.0"),
    training_samples: int = 10000,
    seed: int = 0,
    checkpoint: str | None = None,
    data: str | None = None,
    out: Path = Path("reports"),
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Bounds of the RKHS norm of a model side by side, lower and upper, and the margin bound they would give.

    $ rkhs-norms --model digits_mlp --samples 200

    Args:
        model: Name in checkpoints/, checkpoint folder, or package.module:builder.
        samples: Test images, a seeded stratified subset; all where not given.
        eps: Radii of the perturbations, l2 in pixels of [0, 1].
        training_samples: Training images whose margins are measured; fewer where there are fewer.
        seed: Which images, and every random draw.
        checkpoint: Weights (.safetensors, or .pth of a plain state dict) for a recipe or builder.
        data: Data set or FILE.npz in place of the recipe's.
        out: norms/MODEL.* goes here.
        as_json: Print one JSON object on stdout, the table on stderr.
    """
    from rich.console import Console

    from robustbench_rkhs.norms import norm_report
    from robustbench_rkhs.report.norms import console_norms, write_norms
    from robustbench_rkhs.subjects import load_model, training_images

    subject = load_model(model, checkpoint, data)
    found = norm_report(
        subject.name,
        subject.model,
        subject.test,
        training_images(model, data),
        eps=[_number(text) for text in eps],
        samples=samples,
        training_samples=training_samples,
        seed=seed,
        command=_typed(),
    )
    screen = Console(stderr=as_json, soft_wrap=True)
    if not screen.is_terminal:
        screen.width = 120
    screen.print(console_norms(found))
    written = write_norms(found, out / "norms" / subject.name)
    screen.print(f"norms: {' '.join(str(path) for path in written)}", markup=False, highlight=False)
    if as_json:
        print(json.dumps(found | {"files": [str(path) for path in written]}))


def _audit(
    model: str,
    claim: Names,
    norm: Literal["l2", "linf"] = "l2",
    attack: Names = ("pgd",),
    certify: Names = ("portfolio",),
    samples: int | None = None,
    seed: int = 0,
    block: int = 64,
    device: str = "auto",
    checkpoint: str | None = None,
    data: str | None = None,
    out: Path = Path("reports"),
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> int:
    """Hold claimed accuracies against what is proved and broken, and name the known mistakes that would explain the gap.

    $ rkhs-audit --model mypackage.nets:build --checkpoint theirs.pth --data cifar10 --claim certified@36/255=0.62 clean=0.81
    Verdicts: upheld, not proved (open images leave room), refuted (above what attacks left standing: exit code 1).

    Args:
        model: Name in checkpoints/, checkpoint folder, or package.module:builder.
        claim: certified@EPS=SHARE, robust@EPS=SHARE or clean=SHARE; shares from 0 to 1.
        norm: Distance the radii are measured in.
        attack: NAME or NAME:field=value,... on images that no certificate settles; see rkhs-list attacks.
        certify: NAME or NAME:field=value,...; portfolio: all of them; none.
        samples: Test images, a seeded stratified subset; all where not given.
        seed: Which images, and every random draw.
        block: Images a block, the unit of resuming.
        device: auto, cpu, cuda, cuda:1 ...
        checkpoint: Weights (.safetensors, or .pth of a plain state dict) for a recipe or builder.
        data: Data set or FILE.npz in place of the recipe's.
        out: audits/MODEL.* goes here.
        as_json: Print one JSON object on stdout, the tables on stderr.
    """
    from rich.console import Console

    from robustbench_rkhs.audit import Claim
    from robustbench_rkhs.audit import audit as run
    from robustbench_rkhs.recipe import EvalRecipe, attack_from, certificate_from, parse
    from robustbench_rkhs.report.audit import console_audit, write_audit
    from robustbench_rkhs.subjects import load_model

    claims = [Claim.read(text) for text in claim]
    settings = {
        "norm": norm,
        "eps": sorted({one.eps for one in claims}),
        "attacks": [attack_from(text) for text in attack],
        "certificates": [one for one in map(certificate_from, certify) if one != "none"],
        "samples": samples,
        "seed": seed,
        "block": block,
    }
    recipe = parse(EvalRecipe, settings, "rkhs-audit")
    screen = Console(stderr=as_json, soft_wrap=True)
    if not screen.is_terminal:
        screen.width = 140
    where, subject = _device(device), load_model(model, checkpoint, data)
    found = run(
        subject.model,
        subject.test,
        claims,
        recipe,
        name=subject.name,
        folder=out / "audits" / "verdicts",
        device=where,
        command=_typed(),
        say=lambda line: screen.print(line, markup=False, highlight=False),
    )
    for table in console_audit(found):
        screen.print(table)
    written = write_audit(found, out / "audits" / subject.name)
    screen.print(f"audit: {' '.join(str(path) for path in written)}", markup=False, highlight=False)
    if as_json:
        print(json.dumps(found | {"files": [str(path) for path in written]}))
    return 1 if found["breaches"] or any(row["verdict"] == "refuted" for row in found["claims"]) else 0


def _tightness(
    model: str,
    samples: int = 32,
    seed: int = 0,
    checkpoint: str | None = None,
    data: str | None = None,
    out: Path = Path("reports"),
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Layer by layer, the proven bound over what is found from below: where the certificate is lost.

    $ rkhs-tightness --model digits_conv --samples 32

    Args:
        model: Name in checkpoints/, checkpoint folder, or package.module:builder.
        samples: Test images, a seeded stratified subset; all where there are fewer.
        seed: Which images, and every random draw.
        checkpoint: Weights (.safetensors, or .pth of a plain state dict) for a recipe or builder.
        data: Data set or FILE.npz in place of the recipe's.
        out: tightness/MODEL.* goes here; verdicts of the model are looked for in verdicts/.
        as_json: Print one JSON object on stdout, the tables on stderr.
    """
    from rich.console import Console

    from robustbench_rkhs.audit import tightness as run
    from robustbench_rkhs.report.tightness import console_tightness, write_tightness
    from robustbench_rkhs.subjects import load_model

    if samples < 1:
        raise UserError(f"--samples: expected at least 1, found {samples}")
    subject = load_model(model, checkpoint, data)
    folder = out / "verdicts"
    found = run(subject.name, subject.model, subject.test, samples=samples, seed=seed, folder=folder, command=_typed())
    screen = Console(stderr=as_json, soft_wrap=True)
    if not screen.is_terminal:
        screen.width = 140
    for table in console_tightness(found):
        screen.print(table)
    written = write_tightness(found, out / "tightness" / subject.name)
    screen.print(f"tightness: {' '.join(str(path) for path in written)}", markup=False, highlight=False)
    if as_json:
        print(json.dumps(found | {"files": [str(path) for path in written]}))


audit = command(_audit)
tightness = command(_tightness)


def _sweep(
    fields: dict[str, str],
    /,
    sweep: str,
    name: str | None = None,
    device: str = "auto",
    out: Path = Path("sweeps"),
    reports: Path = Path("reports/sweeps"),
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Train a recipe at many settings and pick one on validation images. Fields of the recipe are flags, as for rkhs-train.

    $ rkhs-sweep --sweep digits_gradient
    $ rkhs-sweep --sweep mine.yaml --epochs 20 --device cuda:1
    The same command on another core or machine that sees OUT is a second worker; a sweep that was stopped or killed goes on.

    Args:
        sweep: Name in models/sweeps/, or path of a YAML sweep.
        name: What it is called; the file's name where not given.
        device: auto, cpu, cuda, cuda:1 ...
        out: Journal, trials, results.csv and best.yaml are in OUT/NAME.
        reports: The report is REPORTS/NAME.*.
        as_json: Print one JSON object on stdout, the progress on stderr.
    """
    from robustbench_rkhs.sweep import Plan, Sweep, work

    where = _device(device)
    plan, called = Plan(Sweep.read(sweep), fields), name or Path(sweep).stem
    screen = sys.stderr if as_json else sys.stdout

    def say(line: str) -> None:
        print(line, file=screen, flush=True)

    found = work(plan, called, out / called, reports, device=where, command=_typed(), say=say)
    if not found["finished"]:
        say("all settings are taken; the worker that finishes the last one writes the report")
    for row in found["settings"] if found["finished"] else []:
        if row["picked"]:
            say(f"picked by {plan.sweep.pick}: trial {row['trial']}, {json.dumps(row['setting'])}")
    say(f"sweep: {' '.join(found['files'])}")
    if as_json:
        print(json.dumps(found))


def _pictures(
    kind: Annotated[Literal["deformations", "learning", "curves", "square_wave", "vae"], tyro.conf.Positional],
    model: Names = (),
    data: str = "digits",
    out: Path = Path("reports/pictures"),
    name: str | None = None,
    images: int = 4,
    seed: int = 0,
    band: Literal["range", "interval"] = "range",
    norm: Literal["l2", "linf"] = "l2",
    verdicts: Path = Path("reports/verdicts"),
    vae: str = "",
) -> None:
    """Draw what the methods do and how runs learned: OUT/KIND-NAME.png, .pdf and .svg.

    $ rkhs-pictures deformations --data mnist
    $ rkhs-pictures learning --model digits_mlp 'plain=sweeps/mine/trials/0000/*'
    $ rkhs-pictures curves --model 'digits_*' --band interval
    $ rkhs-pictures square_wave --model 'reports/square_wave/runs/*'
    $ rkhs-pictures vae --data mnist --vae kind=convolutional,iterations=2000
    Runs of one recipe that differ in the seed alone are drawn as one curve; LABEL=GLOB makes a group of its own.

    Args:
        kind: deformations: test images, deformed. learning: loss and validation by epoch. curves: accuracy by eps over seeds.
            square_wave: networks' fits. vae: samples beside data.
        model: Names in checkpoints/, folders or globs, of curves names of models in VERDICTS; each as it is or as LABEL=GLOB.
        data: Data set or FILE.npz.
        out: Where the pictures go.
        name: End of the files' names; made of the labels where not given.
        images: Rows of the sheet.
        seed: Which images, and every random draw.
        band: Of curves over seeds: smallest to largest, or the 95% interval of the mean.
        norm: Of curves: distance of the verdicts.
        verdicts: Of curves: where the verdicts are.
        vae: Fields of the VAE sampler, field=value,...; see rkhs-list samplers vae.
    """
    from robustbench_rkhs import pictures as draw

    if kind == "deformations":
        paths = draw.deformations_picture(data, out, images, seed)
    elif kind == "learning":
        paths = draw.learning_picture(model, out, name, band, _typed())
    elif kind == "curves":
        paths = draw.curves_picture(model, out, name, band, verdicts, norm, _typed())
    elif kind == "square_wave":
        paths = draw.square_wave_picture(model, out, name, _typed())
    else:
        paths = draw.vae_picture(data, out, images, seed, vae)
    print(f"pictures: {' '.join(str(path) for path in paths)}")


def _verify_adversarials(
    files: Annotated[tuple[Path, ...], tyro.conf.Positional],
    model: str | None = None,
    weights: str | None = None,
    data: str | None = None,
    device: str = "auto",
) -> int:
    """Re-check files of adversarial images, each image against the data and the model asked again.

    $ rkhs-verify adversarials/digits_mlp-l2.npz
    Exit code 0: all images confirmed; 1: some refused, with the reason; 2: not such a file.

    Args:
        files: FILE.npz as rkhs-eval --save-adversarials writes it.
        model: Name in checkpoints/, checkpoint folder or package.module:builder; the checkpoint the file names where not given.
        weights: Weights (.safetensors, or .pth of a plain state dict) for a recipe or builder.
        data: Data set or FILE.npz in place of the recipe's.
        device: auto, cpu, cuda, cuda:1 ...
    """
    from robustbench_rkhs.submission.adversarials import judge, named_by
    from robustbench_rkhs.verdicts import read_adversarials

    where, code = _device(device), 0
    for file in files:
        try:
            stored = read_adversarials(file)
            judged = judge(stored, named_by(stored, model, weights, data), where)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            code = 2
            continue
        print("\n".join(judged.lines()))
        code = max(code, 0 if judged.confirmed.all() else 1)
    return code


def verify() -> None:
    """Re-check certificate files: NumPy alone, no torch; exit code 1 where one is not true, 2 where it is none.

    A FILE.npz is of adversarial images: re-checked by asking the model.
    """
    if any(word.endswith(".npz") for word in sys.argv[1:]):
        command(_verify_adversarials)()
    from robustbench_rkhs.verifier.command import main

    raise SystemExit(main(sys.argv[1:], "Of adversarial images: rkhs-verify FILE.npz --help"))


train = command(_train, overrides=True)
evaluate = command(_evaluate)
report = command(_report)
rank = command(_rank)
listing = command(_listing)
submit = command(_submit)
norms = command(_norms)
pictures = command(_pictures)
sweep = command(_sweep, overrides=True)
