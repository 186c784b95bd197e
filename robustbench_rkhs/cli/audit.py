"""rkhs-audit: claimed accuracies against what is proved and broken."""

from pathlib import Path
from typing import Annotated

import tyro

from robustbench_rkhs.cli.command import Names, command, typed_command, usable_device
from robustbench_rkhs.cli.screen import console_of_width, ending, told
from robustbench_rkhs.nodes.threat_model import Norm


def _audit(
    model: str,
    claim: Names,
    norm: Norm = "l2",
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
    Verdicts: upheld, not proved (open images leave room), refuted (above what attacks did not break: exit code 1).

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
    from robustbench_rkhs.audit import Claim
    from robustbench_rkhs.audit import audit as run
    from robustbench_rkhs.evaluation.recipe import EvalRecipe, attack_from, certificate_from
    from robustbench_rkhs.nodes.code_names import TYPED
    from robustbench_rkhs.nodes.parsing import parse
    from robustbench_rkhs.reports.audit import console_audit, write_audit
    from robustbench_rkhs.zoo import load_model

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
    recipe = parse(EvalRecipe, settings, "rkhs-audit", TYPED)
    screen = console_of_width(140, stderr=as_json)
    where, subject = usable_device(device), load_model(model, checkpoint, data, lambda line: told(screen, line))
    found = run(
        subject.model,
        subject.test,
        claims,
        recipe,
        name=subject.name,
        folder=out / "audits" / "verdicts",
        device=where,
        command=typed_command(),
        say=lambda line: told(screen, line),
    )
    for table in console_audit(found):
        screen.print(table)
    written = write_audit(found, out / "audits" / subject.name)
    ending(screen, "audit", found, written, as_json)
    return 1 if found["breaches"] or any(row["verdict"] == "refuted" for row in found["claims"]) else 0


main = command(_audit)
