"""rkhs-eval: models certified and attacked, the table of verdicts."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from robustbench_rkhs.cli.command import Names, command, typed_command, usable_device
from robustbench_rkhs.cli.condition import Condition
from robustbench_rkhs.cli.number import number
from robustbench_rkhs.cli.screen import console_of_width, told
from robustbench_rkhs.cli.warnings import warnings_of
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.threat_model import Norm


def _evaluate(
    model: Names,
    eps: Names,
    norm: Norm = "l2",
    attack: Names = (),
    effort: Literal["quick", "adaptive", "standard"] = "standard",
    budget: str | None = None,
    certify: Names = ("portfolio",),
    certify_seconds: float | None = None,
    smooth: str | None = None,
    twin: str | None = None,
    diagnostics: bool = True,
    rechecked: int = 8,
    samples: int | None = None,
    seed: int = 0,
    block: int = 64,
    workers: int = 1,
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
        twin: A model as for --model, of the same data and classes but trained without defence: what breaks it is tried on every
            survivor. Cost: at most 330 passes an image and eps.
        diagnostics: Check on 64 images (16 where --effort quick) whether the attacks can be believed, and attack the survivors of a
            model that trips a check further. Cost: at most 1,550 passes an image of the sample. --no-diagnostics: the result is
            marked undiagnosed.
        rechecked: Of the survivals inferred from a larger eps, how many are attacked at their own eps after all. Cost: at most so
            many runs of the attacks that have a budget, each about 8,800 passes of the ensemble where the image is robust.
        samples: Test images, a seeded stratified subset; all where not given.
        seed: Which images, and every random draw.
        block: Images a block, the unit of resuming.
        workers: Processes that take a block each of our own attacks, on a CPU, one thread each.
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
    from robustbench_rkhs import verdicts
    from robustbench_rkhs.evaluation.recipe import EvalRecipe, attack_from, certificate_from
    from robustbench_rkhs.nodes.code_names import TYPED
    from robustbench_rkhs.nodes.parsing import parse
    from robustbench_rkhs.reports import report as write_reports
    from robustbench_rkhs.reports.tables import console, console_attacks, console_certificates
    from robustbench_rkhs.zoo import evaluate, load_model, load_twin, smoothed, smoothing_from

    conditions = [Condition.read(text) for text in require]
    settings = {
        "norm": norm,
        "eps": [number(text) for text in eps],
        "attacks": [attack_from(text) for text in attack],
        "effort": effort,
        "budget": budget,
        "certificates": [one for one in map(certificate_from, certify) if one != "none"],
        "certify_seconds": certify_seconds,
        "samples": samples,
        "seed": seed,
        "block": block,
        "workers": workers,
        "diagnostics": diagnostics,
        "rechecked": rechecked,
    }
    votes: dict[str, Any] = {}
    if smooth is not None:
        counted, one = smoothing_from(smooth, seed)
        votes = {"sigma": one.sigma, **counted}
        if certify == ("portfolio",):
            settings["certificates"] = [one]
    recipe = parse(EvalRecipe, settings, "rkhs-eval", TYPED)
    if certificate_files is not None and not {"margin", "liplt", "eclipse"} & {one.label for one in recipe.certificates}:
        raise UserError("--certificate: certificate files need the radii of --certify margin, liplt or eclipse")
    screen = console_of_width(120, stderr=as_json)
    where, failed, results = usable_device(device), 0, []
    if save_adversarials is not None and save_adversarials.suffix == ".npz" and len(model) > 1:
        raise UserError(f"--save-adversarials: {save_adversarials} is one file for {len(model)} models; expected a folder")
    subjects = [load_model(name, checkpoint, data, lambda line: told(screen, line)) for name in model]
    other = None if twin is None else load_twin(twin, data, subjects)
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
            twin=other,
            device=where,
            command=typed_command(),
            say=lambda line: told(screen, line),
        )
        screen.print(console(done))
        if len(recipe.certificates) > 1:
            screen.print(console_certificates(done))
        screen.print(console_attacks(done))
        written = write_reports([done], out, leaderboard=False)
        for line in warnings_of(done):
            told(screen, line)
        written |= {} if saved is None else {"adversarials": [saved]}
        for kind, paths in {"verdicts": [done.path] if done.path else [], **written}.items():
            shown = " ".join(str(path) for path in paths)
            told(screen, f"{kind}: {shown}")
        if certificate_files is not None:
            from robustbench_rkhs.proofs import write_proof

            write_proof(subject.model, subject.test.sample(samples, seed), done, certificate_files / subject.name)
            told(screen, f"certificate: {certificate_files / subject.name} (verified)")
        for condition in conditions:
            held, line = condition.check(done)
            failed += not held
            told(screen, line)
        failed += len(done.about.breaches) > 0
        results.append(
            {
                "about": done.about.plain(),
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


main = command(_evaluate)
