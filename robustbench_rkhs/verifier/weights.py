"""Comparison of a checkpoint with a proof, in NumPy: digest, tensors against arrays, and function against network."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .chain import forward
from .operations import Malformed, Operation, expected, reason
from .probes import agree, fixed_images
from .proof import Proof, Rejected, whole

TYPES = {
    "F64": ("torch.float64", "<f8"),
    "F32": ("torch.float32", "<f4"),
    "F16": ("torch.float16", "<f2"),
    "BF16": ("torch.bfloat16", "<u2"),
    "I64": ("torch.int64", "<i8"),
    "I32": ("torch.int32", "<i4"),
    "U8": ("torch.uint8", "|u1"),
    "BOOL": ("torch.bool", "|b1"),
}

Stored = tuple[str, np.ndarray]
"""PyTorch's name of the type, and the values (bfloat16 as its bits)."""


def read(path: Path) -> dict[str, Stored]:
    """The tensors of a .safetensors file: 8 bytes of length, a JSON header, raw data. Raises Malformed."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise Malformed(f"cannot read {path}: {error.strerror}") from None
    length = int.from_bytes(raw[:8], "little")
    expected(8 + length <= len(raw), f"{path} is not a safetensors file")
    found = {}
    try:
        header = json.loads(raw[8 : 8 + length])
        for name, row in header.items():
            if name == "__metadata__":
                continue
            kind, code = TYPES[row["dtype"]]
            start, end = (whole(at, "an offset") for at in row["data_offsets"])
            found[name] = kind, np.frombuffer(raw[8 + length + start : 8 + length + end], dtype=code).reshape(row["shape"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Malformed(f"{path} is not a safetensors file: {type(error).__name__}: {reason(error)}") from None
    return found


def widened(stored: Stored) -> Stored:
    """Half precision converted to float32, as when it is loaded."""
    kind, values = stored
    if kind == "torch.bfloat16":
        return "torch.float32", (values.astype("<u4") << 16).view("<f4")
    return ("torch.float32", values.astype("<f4")) if kind == "torch.float16" else stored


def digest(tensors: dict[str, Stored]) -> str:
    """sha256 over names, shapes, types and bytes of all tensors, in the order of their names."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        kind, values = tensors[name]
        sha.update(f"{name}{tuple(values.shape)}{kind}".encode())
        sha.update(np.ascontiguousarray(values).tobytes())
    return sha.hexdigest()


def check(proof: Proof, path: Path) -> str:
    """A line on how the checkpoint matches the proof. Raises Rejected if the proof is for another checkpoint."""
    stored = read(path)
    loaded = {name: widened(tensor) for name, tensor in stored.items()}
    if proof.about["weights"] not in (digest(stored), digest(loaded)):
        raise Rejected(f"{path.name} has digest {digest(loaded)[:12]}, the proof is for {str(proof.about['weights'])[:12]}")
    same = 0
    for name, row in proof.about["arrays"].items():
        if row["tensor"] is None:
            continue
        tensor = loaded.get(row["tensor"]) if isinstance(row["tensor"], str) else None
        values, claimed = None if tensor is None else tensor[1].astype(np.float64), proof.arrays[name].astype(np.float64)
        if values is None or values.size != claimed.size or not np.array_equal(values.ravel(), claimed.ravel()):
            raise Rejected(f"array {name!r} is not the checkpoint's {row['tensor']!r}")
        same += 1
    layers = sum(name.startswith("layer_") for name in proof.arrays)
    return f"weights: the checkpoint's digest; {same} of {layers} arrays are its tensors, the others are computed from them"


def check_function(proof: Proof, chain: Sequence[Operation], path: Path) -> str:
    """A line on whether config.json, next to the weights, describes the proof's network. Raises Rejected if it does not.

    The same tensors in another network are another model, so the logits on the fixed images are compared.
    """
    beside = path.parent / "config.json"
    try:
        config = json.loads(beside.read_text()) if beside.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise Malformed(f"{beside} is not a checkpoint's config.json: {reason(error)}") from None
    expected(isinstance(config, dict), f"{beside} is not a checkpoint's config.json")
    own = proof.about.get("function", {})
    expected(isinstance(own, dict), "function is not a mapping")
    if own.get("key") and config.get("key") and own["key"] != config["key"]:
        raise Rejected(f"the checkpoint has function {str(config['key'])[:12]}, the proof of {str(own['key'])[:12]}")
    answers = forward(chain, fixed_images(proof.shape))[0]
    for said, whose in ((own.get("logits"), "the proof says"), (config.get("logits"), "the checkpoint's config.json says")):
        if said and not agree(answers, said):
            raise Rejected(f"the proof's network has other logits on the fixed images than {whose}")
    named = bool(config.get("logits"))
    return "function: the network has the checkpoint's logits" if named else "function: the checkpoint does not state its logits"
