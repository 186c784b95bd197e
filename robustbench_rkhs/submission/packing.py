"""Packing a bundle: what is sent, with the sender's own table, digests and signature."""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from robustbench_rkhs import verdicts
from robustbench_rkhs.evaluation.recipe import typed_certificates
from robustbench_rkhs.identity import key_of
from robustbench_rkhs.nodes.code_names import SUBMITTED
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import reason
from robustbench_rkhs.reports.entries import best_of
from robustbench_rkhs.reports.places import Places
from robustbench_rkhs.runtime.files import Unwritable
from robustbench_rkhs.runtime.seals import sha256_of
from robustbench_rkhs.submission.accepted import accepted_model
from robustbench_rkhs.submission.adversarials import judge, named_by
from robustbench_rkhs.submission.bundle import Bundle, read_bundle
from robustbench_rkhs.submission.bundle_names import BESIDE, IMAGES, OF_MODEL, PUBLIC, SIGNATURE, STATED, VERDICTS
from robustbench_rkhs.submission.gate import as_evaluation, check, known_data, refusal
from robustbench_rkhs.submission.keys import default_key, sign
from robustbench_rkhs.training import checkpoint
from robustbench_rkhs.verdicts import Evaluation

Tell = Callable[[str], object] | None
"""Called with a line about the secret key, where one is made."""


def pack_checkpoint(
    path: Path, bundle: Path, *, out: Path, table: Path | None = None, key: Path | None = None, tell: Tell = None
) -> Bundle:
    """A bundle of a checkpoint folder, in a folder that must not exist yet; nothing is left behind where it fails.

    table: the sender's own evaluation; where not given, the strongest of this function in OUT/verdicts. key: the sender's secret
    key, made where its file is missing. Raises UserError where the folder would be refused, or was not evaluated.
    """
    name = check(path)
    loaded = checkpoint.load(path, SUBMITTED)
    known_data(loaded.recipe)
    own = _table(out, table, key_of(loaded.model), loaded.weights, path)
    about = own.about
    asked: dict[str, Any] = {"norm": about.norm, "eps": list(about.eps_text or about.epsilons)}
    asked |= {"certificates": typed_certificates(about.settings)}

    def fill(folder: Path) -> None:
        (folder / name).mkdir()
        for one in sorted(OF_MODEL | BESIDE):
            if (path / one).is_file():
                shutil.copyfile(path / one, folder / name / one)
        verdicts.write(own, folder / VERDICTS)

    return _packed(bundle, {"kind": "checkpoint", "name": name, "evaluation": asked}, fill, key, tell)


def pack_adversarials(
    path: Path,
    bundle: Path,
    *,
    model: str | None = None,
    weights: str | None = None,
    data: str | None = None,
    device: str = "cpu",
    command: str = "",
    key: Path | None = None,
    out: Path = Path("reports"),
    tell: Tell = None,
) -> Bundle:
    """A bundle of a file of adversarial images, as `pack_checkpoint`; its model may be one that was accepted in OUT.

    Raises UserError where none of its images is confirmed.
    """
    stored = verdicts.read_adversarials(path)
    model = model or (accepted_model(stored, out) if weights is None else None)
    judged = judge(stored, named_by(stored, model, weights, data), device)
    if not judged.confirmed.any():
        raise UserError(f"{path}: none of its {len(judged.reasons)} images is confirmed: {judged.reasons[0]}")

    def fill(folder: Path) -> None:
        shutil.copyfile(path, folder / IMAGES)
        verdicts.write(as_evaluation(judged, path, device, command), folder / VERDICTS)

    return _packed(bundle, {"kind": "adversarials", "name": judged.named.name}, fill, key, tell)


def _table(out: Path, table: Path | None, function: str, weights: str, path: Path) -> Evaluation:
    """The sender's table. Raises UserError for one that would be refused."""
    if table is not None:
        found = verdicts.read(table)
        if (found.about.key, found.about.weights) != (function, weights):
            raise UserError(f"{table} is of another model ({found.about.weights[:12]}) than {path} ({weights[:12]})")
    else:
        places, unread = Places(out), list[str]()
        briefs = [one for one in places.cache().read_all(places.verdicts, unread.append) if one.about.epsilons]
        same = [one for one in briefs if (one.about.key, one.about.weights) == (function, weights) and one.sealed]
        if not same:
            raise UserError(f"no evaluation of {path} in {places.verdicts}: rkhs-eval --model {path} --eps ... makes it")
        found = best_of(same).evaluation()
    if not found.sealed:
        raise UserError(f"{found.path}: the table is not sealed: evaluate again")
    if fault := refusal(found):
        raise UserError(f"{found.path} would be refused: {fault}")
    return found


def _packed(bundle: Path, said: Mapping[str, Any], fill: Callable[[Path], None], key: Path | None, tell: Tell) -> Bundle:
    """Fill a folder beside `bundle`, list and sign its files, read it back as the gate will, and move it into place."""
    if bundle.exists() or bundle.is_symlink():
        raise UserError(f"--bundle {bundle}: expected a folder that does not exist yet, so that nothing is overwritten")
    key = key or default_key()
    try:
        bundle.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{bundle.name}.", dir=bundle.parent) as temporary:
            folder = Path(temporary) / bundle.name
            folder.mkdir()
            fill(folder)
            public, _ = sign(b"", key, tell)
            (folder / PUBLIC).write_text(f"{public}\n")
            files = {one.relative_to(folder).as_posix(): sha256_of(one) for one in sorted(folder.rglob("*")) if one.is_file()}
            stated = yaml.safe_dump({"format": 1, **said, "files": files}, sort_keys=False)
            (folder / STATED).write_text(stated)
            (folder / SIGNATURE).write_text(f"{sign(stated.encode(), key)[1]}\n")
            read_bundle(folder)
            folder.rename(bundle)
    except OSError as error:
        raise Unwritable(f"cannot write {bundle}: {reason(error)}") from None
    return read_bundle(bundle)
