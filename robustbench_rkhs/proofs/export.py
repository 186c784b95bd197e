"""Writes a certificate file: the folded network, its claims and the images, whole or not at all."""

import hashlib
import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_rkhs.certificates.rounding import logits_and_error
from robustbench_rkhs.data import Split
from robustbench_rkhs.files import Unwritable
from robustbench_rkhs.lipschitz import Step, steps
from robustbench_rkhs.lipschitz.chains import pair_bounds
from robustbench_rkhs.node import UserError
from robustbench_rkhs.proofs.written import written
from robustbench_rkhs.verdicts import Evaluation
from robustbench_rkhs.verifier.check import Verdict, verify
from robustbench_rkhs.verifier.operations import Malformed
from robustbench_rkhs.verifier.proof import FORMAT, VERSION, Rejected, array_digest, digest_of

BATCH = 64
UNCHECKED = "its proof is more than bounds of layers, which is all that is re-checked"
"""Why other certificates than `margin` are listed only."""


def write_proof(model: nn.Module, split: Split, evaluation: Evaluation, folder: Path) -> Verdict:
    """Write `folder`/proof.json and proof.npz for the evaluated images, once the verifier has accepted them.

    Raises UserError in one line, with nothing written, where a layer has no export rule or no proven bound, where the evaluation is
    not of these images, or where the verifier rejects what would be written.
    """
    arrays: dict[str, np.ndarray] = {}
    certificates = _claims(split, evaluation, arrays)
    with torch.inference_mode(False), torch.no_grad():
        chain = steps(model, split.shape)
        rows = _rows(chain, arrays)
        arrays["pairs"] = pair_bounds(chain, split.shape, split.classes).numpy()
        parts = [logits_and_error(chain, part) for part in split.x.detach().cpu().double().split(BATCH)]
    arrays["logits"], arrays["error"] = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    x = split.x.detach().cpu().contiguous().numpy()
    if x.dtype.str not in ("<f2", "<f4", "<f8"):
        raise UserError(f"certificate files hold images of 16, 32 or 64 bits, found {split.x.dtype}")
    arrays |= {"images": x, "index": _whole(split.index), "label": _whole(split.y)}
    about = evaluation.about
    proof = {
        "format": FORMAT,
        "version": VERSION,
        "model": about["model"],
        "weights": about["weights"],
        "data": {"name": split.data, "split": split.split, "digest": split.digest},
        "preprocessing": "none outside the network: normalisation is one of its layers",
        "norm": about["norm"],
        "epsilons": sorted(about["epsilons"]),
        "shape": list(split.shape),
        "classes": split.classes,
        "layers": rows,
        "images": [hashlib.sha256(image.tobytes()).hexdigest() for image in x],
        "certificates": certificates,
        "adversarial": [],
        "made_by": {"torch": torch.__version__, "numpy": np.__version__, "date": about["date"]},
    }
    return publish(proof, arrays, _tensors(model), Path(folder))


def publish(proof: dict[str, Any], arrays: dict[str, np.ndarray], tensors: dict[tuple[int, str], str], folder: Path) -> Verdict:
    """Write both files aside, let the verifier read them, and rename them. Raises UserError where it rejects them."""
    aside: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        write(proof, arrays, tensors, aside)
        verdict = verify(aside)
        for name in ("proof.npz", "proof.json"):
            os.chmod(aside / name, 0o644)
            os.replace(aside / name, folder / name)
        return verdict
    except (Rejected, Malformed) as reason:
        raise UserError(f"no certificate file for {proof['model']}: the verifier says: {reason}") from None
    except OSError as error:
        raise Unwritable(f"cannot write {folder}: {error.strerror}") from None
    finally:
        if aside:
            shutil.rmtree(aside, ignore_errors=True)


def write(proof: dict[str, Any], arrays: dict[str, np.ndarray], tensors: dict[tuple[int, str], str], folder: Path) -> None:
    """proof.npz, then proof.json with all digests."""
    kept = {name: array if name in ("images", "pairs") else narrow(array) for name, array in arrays.items()}
    with open(folder / "proof.npz", "wb") as file:
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
    (folder / "proof.json").write_bytes(text.replace(b"0" * 64, digest_of(text, "0" * 64).encode(), 1))


def narrow(array: np.ndarray) -> np.ndarray:
    """The narrowest type that loses nothing."""
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
    """Each certificate's radii as an array, and a row on it."""
    table, rows = evaluation.table, []
    indices = split.index.tolist()
    images = split.x.detach().cpu().contiguous().numpy()
    shas = {index: hashlib.sha256(image.tobytes()).hexdigest() for index, image in zip(indices, images, strict=True)}
    proofs = table[(table["kind"] == "certificate") & (table["method"] != "prediction")]
    for number, (method, found) in enumerate(proofs.groupby("method", sort=True)):
        known = {int(row["index"]): row for row in found.to_dict("records")}
        if set(known) != set(indices) or any(known[index]["input_sha256"] != shas[index] for index in indices):
            raise UserError(f"no certificate file: the radii of {method!r} are not those of these {len(indices)} images")
        arrays[f"radii_{number}"] = np.array([known[index]["radius"] for index in indices], dtype="<f8")
        checkable = method == "margin"
        row = {"method": method, "checkable": checkable, "reason": "" if checkable else UNCHECKED, "radii": f"radii_{number}"}
        rows.append(row)
    if not any(row["checkable"] for row in rows):
        raise UserError("no certificate file: it needs the radii of --certify margin")
    return rows


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
