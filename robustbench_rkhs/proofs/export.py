"""Export of certificate files: the folded network, its claims and the images, written atomically."""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_rkhs.bounds import Step
from robustbench_rkhs.bounds.eclipse import Advanced, Restarted, eclipse_proof
from robustbench_rkhs.certificates import LipLTCertificate, MarginCertificate
from robustbench_rkhs.certificates.float32 import FLOAT32
from robustbench_rkhs.certificates.rounding import logits_and_error
from robustbench_rkhs.data import Split
from robustbench_rkhs.lipschitz import Uncertifiable
from robustbench_rkhs.lipschitz.activations import slopes
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.proofs.layers_written import written
from robustbench_rkhs.proofs.witnesses import RELAXED, Written, write_witness
from robustbench_rkhs.runtime.files import Unwritable, flush
from robustbench_rkhs.verdicts import Evaluation
from robustbench_rkhs.verifier.build import ACTIVATIONS
from robustbench_rkhs.verifier.check import METHODS, Verdict, verify
from robustbench_rkhs.verifier.operations import Malformed
from robustbench_rkhs.verifier.proof import FORMAT, VERSION, Rejected, array_digest, digest_of

BATCH = 64
REASONS = {
    "smoothing": "its proof is a count of random draws",
}
"""Reasons why other certificates are only listed."""
FILES = ("proof.npz", "proof.json")
"""Of a certificate, in the order in which they are renamed."""


def write_proof(model: nn.Module, split: Split, evaluation: Evaluation, folder: Path) -> Verdict:
    """Write `folder`/proof.json and proof.npz for the evaluated images, once the verifier has accepted them.

    Raises UserError, with nothing written, if a layer has no export rule or no proven bound, if the evaluation is not of these
    images, or if the verifier rejects the files.
    """
    arrays: dict[str, np.ndarray] = {}
    certificates = _claims(split, evaluation, arrays)
    with torch.inference_mode(False), torch.no_grad():
        chain = MarginCertificate().chain_and_bounds(model, split.shape)[0]  # cached since the evaluation
        rows = _rows(chain, arrays)
        _prove(model, chain, split, certificates, arrays)
        for number, row in enumerate(certificates):
            if row["checkable"] and kind_of(row["method"]) in RELAXED:
                write_witness(number, row, Written(model, split, chain, rows, evaluation.about.norm, evaluation.about.box), arrays)
        parts = [logits_and_error(chain, part) for part in split.x.detach().cpu().double().split(BATCH)]
    arrays["logits"], arrays["error"] = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    arrays["best"] = best(certificates, arrays)
    x = split.x.detach().cpu().contiguous().numpy()
    if x.dtype.str not in ("<f2", "<f4", "<f8"):
        raise UserError(f"certificate files hold images of 16, 32 or 64 bits, found {split.x.dtype}")
    arrays |= {"images": x, "index": _whole(split.index), "label": _whole(split.y)}
    about = evaluation.about
    proof = {
        "format": FORMAT,
        "version": VERSION,
        "model": about.model,
        "weights": about.weights,
        **({"function": {"key": about.key, "logits": [list(row) for row in about.logits]}} if about.key else {}),
        "data": {"name": split.data, "split": split.split, "digest": split.digest},
        "preprocessing": "none outside the network: normalisation is one of its layers",
        "norm": about.norm,
        "box": about.box,
        "epsilons": sorted(about.epsilons),
        "shape": list(split.shape),
        "classes": split.classes,
        "layers": rows,
        "images": [hashlib.sha256(image.tobytes()).hexdigest() for image in x],
        "certificates": certificates,
        "adversarial": [],
        "made_by": {"torch": torch.__version__, "numpy": np.__version__, "date": about.date},
    }
    return publish(proof, arrays, _tensors(model), Path(folder))


def publish(proof: dict[str, Any], arrays: dict[str, np.ndarray], tensors: dict[tuple[int, str], str], folder: Path) -> Verdict:
    """Write both files to a temporary folder, verify them, then rename. Raises UserError if the verifier rejects them."""
    aside: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        write(proof, arrays, tensors, aside)
        verdict = verify(aside)
        for name in FILES:
            os.chmod(aside / name, 0o644)
            flush(aside / name)
            os.replace(aside / name, folder / name)
        flush(folder)
        return verdict
    except (Rejected, Malformed) as reason:
        raise UserError(f"no certificate file for {proof['model']}: the verifier says: {reason}") from None
    except OSError as error:
        name = Path(str(error.filename)).name
        raise Unwritable(f"cannot write {folder / name if name in FILES else folder}: {error.strerror}") from None
    finally:
        if aside:
            shutil.rmtree(aside, ignore_errors=True)


def write(proof: dict[str, Any], arrays: dict[str, np.ndarray], tensors: dict[tuple[int, str], str], folder: Path) -> None:
    """proof.npz, then proof.json with all digests."""
    kept = {name: array if name == "images" or name.startswith("pairs_") else narrow(array) for name, array in arrays.items()}
    with _named(folder / "proof.npz"), open(folder / "proof.npz", "wb") as file:
        np.savez(file, **kept)  # type: ignore[arg-type]
    table = {}
    for name, array in kept.items():
        tensor = tensors.get(_key(array)) if name.startswith("layer_") else None
        table[name] = {"sha256": array_digest(array), "tensor": tensor}
    stored = (folder / "proof.npz").read_bytes()
    whole = {
        "digest": "0" * 64,
        **proof,
        "npz": {"bytes": len(stored), "sha256": hashlib.sha256(stored).hexdigest()},
        "arrays": table,
    }
    text = json.dumps(whole, indent=1, allow_nan=False).encode() + b"\n"
    with _named(folder / "proof.json"):
        (folder / "proof.json").write_bytes(text.replace(b"0" * 64, digest_of(text, "0" * 64).encode(), 1))


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """An error of writing that does not say which file gets this one's name."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def narrow(array: np.ndarray) -> np.ndarray:
    """The smallest type that represents the values exactly."""
    if array.dtype.kind != "f":
        return array
    with np.errstate(over="ignore"):
        for kind in ("<f2", "<f4"):
            if np.array_equal(array.astype(kind).astype("<f8"), array):
                return array.astype(kind)
    return array.astype("<f8")


def _whole(values: Tensor) -> np.ndarray:
    return values.detach().cpu().to(torch.int64).numpy().astype("<i8")


def _claims(split: Split, evaluation: Evaluation, arrays: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Store each certificate's radii as an array (0 where it was not run); one row per certificate."""
    table, rows = evaluation.table, []
    indices = split.index.tolist()
    images = split.x.detach().cpu().contiguous().numpy()
    input_digests = {index: hashlib.sha256(image.tobytes()).hexdigest() for index, image in zip(indices, images, strict=True)}
    proofs, asked = table[(table["kind"] == "certificate") & (table["method"] != "prediction")], set[int]()
    methods = sorted(
        proofs["method"].unique(), key=lambda method: METHODS.index(kind_of(method)) if kind_of(method) in METHODS else 9
    )
    for number, method in enumerate(methods):
        found = proofs[proofs["method"] == method]
        known = {int(row["index"]): row for row in found.to_dict("records")}
        if not set(known) <= set(indices) or any(row["input_sha256"] != input_digests[index] for index, row in known.items()):
            raise UserError(f"no certificate file: the radii of {method!r} are not those of these {len(indices)} images")
        radii = [known[index]["radius"] if index in known else 0.0 for index in indices]
        arrays[f"radii_{number}"] = np.array(radii, dtype="<f8")
        reason = _unchecked(str(method), {str(row["arithmetic"]) for row in known.values()})
        asked |= set() if reason else set(known)
        row = {"method": method, "checkable": not reason, "reason": reason, "radii": f"radii_{number}"}
        rows.append({**row, "pairs": None, "witness": None})
    if asked != set(indices):
        raise UserError(f"no certificate file: it needs the radii of --certify {' or '.join(METHODS)} on all images")
    return rows


def kind_of(method: str) -> str:
    """A certificate's name, from its label in tables (`margin#0` if several share a name)."""
    return method.partition("#")[0]


def _unchecked(method: str, arithmetic: set[str]) -> str:
    """The reason why a certificate's radii cannot be re-checked; empty if they can."""
    if kind_of(method) not in METHODS:
        return REASONS.get(kind_of(method), "its proof is more than bounds of layers, which is all that is re-checked")
    if arithmetic - {"real", FLOAT32}:  # a radius that covers the rounding of float32 holds in real arithmetic all the more
        return f"its claim is about the network as {' and '.join(sorted(arithmetic))} computes it, not in real arithmetic"
    return ""


def _prove(
    model: nn.Module, chain: list[Step], split: Split, certificates: list[dict[str, Any]], arrays: dict[str, np.ndarray]
) -> None:
    """Pair bounds and witness of every certificate that can be re-checked; one without a proof for this model is only listed."""
    for number, row in enumerate(certificates):
        if not row["checkable"] or kind_of(row["method"]) in RELAXED:
            continue
        witness: list[Any] = []
        try:
            if kind_of(row["method"]) == "margin":
                found = MarginCertificate().chain_and_bounds(model, split.shape)[1]
            elif kind_of(row["method"]) == "liplt":
                found, witness = LipLTCertificate().chain_and_bounds(model, split.shape)[1], anew(chain)
            else:
                found, proof = eclipse_proof(chain, split.shape, split.classes)
                witness = [_entry(one, chain) for one in proof]
        except Uncertifiable as refused:
            if (arrays[row["radii"]] > 0).any():
                raise
            row.update(checkable=False, reason=f"it proves nothing here: {refused}")
            continue
        row.update(pairs=f"pairs_{number}", witness=witness)
        arrays[f"pairs_{number}"] = found.numpy()


def best(certificates: list[dict[str, Any]], arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Per image, the index of the re-checked certificate with the largest radius (the first of equal ones); -1 if none."""
    kept = [number for number, row in enumerate(certificates) if row["checkable"]]
    if not kept:
        raise UserError(f"no certificate file: {certificates[0]['method']}: {certificates[0]['reason']}")
    radii = np.stack([arrays[certificates[number]["radii"]] for number in kept])
    return np.where(radii.max(0) > 0, np.array(kept)[radii.argmax(0)], -1).astype("<i8")


def _places(chain: list[Step]) -> list[int]:
    """Index of the first row of each step, and the total number of rows."""
    counts = [len(written(step.module, step)) for step in chain]
    return [sum(counts[:number]) for number in range(len(counts) + 1)]


def _entry(one: Advanced | Restarted, chain: list[Step]) -> dict[str, Any]:
    """A step of an ECLipsE proof as stored: numbers that are not finite become null."""
    places = _places(chain)
    at = places[one.position]
    if isinstance(one, Restarted):
        return {"at": at, "end": places[one.position + 1], "factor": one.factor if math.isfinite(one.factor) else None}
    return {"at": at, "scale": one.scale if math.isfinite(one.scale) else None, "floor": one.floor}


def anew(chain: list[Step]) -> list[list[int]]:
    """Positions of the activations that LipLT's linear path does not follow: inside layers, or of unknown kinds."""
    found, places = [], _places(chain)
    for at, step in zip(places, chain, strict=False):
        if step.branches:
            for number, branch in enumerate(step.branches):
                found += [[at, number, *rest] for rest in anew(branch)]
        elif slopes(step.module) is None:
            found += [[at + number] for number, plain in enumerate(written(step.module, step)) if plain.operation in ACTIVATIONS]
    return found


def _rows(chain: list[Step], arrays: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """The chain as rows of plain operations; their arrays are added to `arrays`."""
    rows = []
    for step in chain:
        inputs = step.inputs
        for plain in written(step.module, step):
            names = {}
            for key, tensor in plain.arrays.items():
                name = f"layer_{sum(name.startswith('layer_') for name in arrays):04d}_{key}"
                arrays[name] = tensor.detach().cpu().to(torch.float64).contiguous().numpy()
                names[key] = name
            bound = step.bound.value if plain.bound is None else plain.bound
            row = {
                "operation": plain.operation,
                "layer": f"{step.path} {type(step.module).__name__}".strip(),
                "inputs": list(inputs),
                "outputs": list(plain.outputs),
                "bound": bound if math.isfinite(bound) else None,
                **plain.settings,
                "arrays": names,
            }
            if step.branches:
                row["branches"] = [_rows(branch, arrays) for branch in step.branches]
            rows.append(row)
            inputs = plain.outputs
    return rows


def _tensors(model: nn.Module) -> dict[tuple[int, str], str]:
    """Names of the model's tensors by their values."""
    state = model.state_dict()
    return {_key(state[name].detach().cpu().double().numpy()): name for name in sorted(state) if state[name].is_floating_point()}


def _key(array: np.ndarray) -> tuple[int, str]:
    values = np.ascontiguousarray(array.astype("<f8"))
    return values.size, hashlib.sha256(values.tobytes()).hexdigest()
