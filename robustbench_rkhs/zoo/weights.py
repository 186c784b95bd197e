"""Weight files of others: the state dict in a checkpoint, and its names matched to those of a network. Nothing is unpickled."""

import argparse
import pathlib
import re
import types
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_rkhs.nodes.guard import guarded
from robustbench_rkhs.nodes.missing import missing
from robustbench_rkhs.nodes.node import UserError, did_you_mean
from robustbench_rkhs.nodes.reasons import reason
from robustbench_rkhs.training.checkpoint import fill, read_safetensors
from robustbench_rkhs.zoo.containers import unwrapped

SUFFIXES = (".pth", ".pt", ".pth.tar", ".tar", ".ckpt", ".bin", ".t7", ".pyt", ".model")
"""Files of torch.save, read with weights_only."""
KEYS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "weights",
    "params",
    "ema",
    "model_ema",
    "ema_state_dict",
    "state_dict_ema",
)
"""Keys under which checkpoints hold a state dict, the first that is there counts."""
PREFIXES = ("module", "_orig_mod", "model", "net", "network", "ema_model", "averaged_model", "student", "backbone", "encoder")
"""First parts of names that containers and training frameworks put before those of the network."""
COUNTERS = ("num_batches_tracked", "n_averaged")
"""Last parts of names of counters, on which no output depends."""
LONGEST = 1000
"""Most characters of a tensor's name."""
SHOWN = 6
"""Entries beside the weights that are named, the rest are counted."""
PLAIN: tuple[Any, ...] = (
    np.dtype,
    np.ndarray,
    *((np.float64(0).__reduce__()[0], f"numpy.{room}.multiarray.scalar") for room in ("core", "_core")),  # NumPy 1 and 2
    *((np.zeros(1).__reduce__()[0], f"numpy.{room}.multiarray._reconstruct") for room in ("core", "_core")),
    *(kind for name, kind in vars(np.dtypes).items() if name.endswith("DType") and isinstance(kind, type)),
    argparse.Namespace,
    types.SimpleNamespace,
    pathlib.PosixPath,
    pathlib.PurePosixPath,
)
"""Values without code that often lie beside weights, and that weights_only does not know by itself."""


class Weights(NamedTuple):
    """The tensors of one network, from a file."""

    tensors: dict[str, Tensor]
    name: str
    """The file's name without its ending, and what was chosen in it."""
    said: str
    """In one line: what was read, and what stands beside it; empty where there is nothing to say."""


def read_weights(text: str) -> Weights:
    """`FILE`, or `FILE:state_dict[0]` for a part of it: .safetensors, or a file of torch.save, read with weights_only.

    Without a part: the file itself, or its only state dict, under the first of KEYS that is there. Raises UserError in one line.
    """
    with guarded(f"weights {text!r}"):  # a file may hold tensors of any kind
        return _read(text)


def _read(text: str) -> Weights:
    path, part = _split(text)
    if path.name.endswith(".safetensors") and not part:
        return Weights(read_safetensors(path), path.stem, "")
    stored = _loaded(path)
    where, found = ("", stored) if not part else (part, _at(stored, part, path))
    inner, state = _only(found, where, path)
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if long := [name for name in tensors if len(name) > LONGEST]:
        raise UserError(f"{path}: expected names of up to {LONGEST} characters, found {long[0][:40]!r}")
    beside = [
        *_beside(stored, inner),
        *(f"{name} {_short(value)}" for name, value in state.items() if not isinstance(value, Tensor)),
    ]
    name = path.name[: -len(_suffix(path))] + ("-" + "-".join(re.findall(r"\w+", part)) if part else "")
    if not inner and not beside:
        return Weights(tensors, name, "")
    rest = f" and {len(beside) - SHOWN} more" if len(beside) > SHOWN else ""
    others = f"; beside it: {', '.join(beside[:SHOWN])}{rest}" if beside else ""
    return Weights(tensors, name, f"{path.name}: read {inner or 'its tensors'} ({len(tensors)} tensors){others}")


def fill_matched(model: nn.Module, weights: Weights, source: str) -> str:
    """Load the tensors into a network, whatever containers stood around it when they were stored. Raises UserError.

    Returns in one line which names were changed; empty where none were.
    """
    inside = unwrapped(model)[0]
    for target in [model] if inside is model else [model, inside]:
        expected = target.state_dict()
        for said, state in _readings(weights.tensors, expected):
            needed = {name for name in expected if not name.endswith(COUNTERS)}
            if needed <= state.keys() and all(name in expected or name.endswith(COUNTERS) for name in state):
                whole = {name: state.get(name, value) for name, value in expected.items()}
                fill(target, whole, source)
                return said
    fill(inside, weights.tensors, source)  # which names what does not fit
    return ""


def _readings(tensors: dict[str, Tensor], expected: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The tensors under the names that a network may have for them, the nearest to the file's first."""
    yield "", tensors
    now, cut = tensors, ""
    for _ in range(4):
        first = {name.partition(".")[0] for name in now if not name.endswith(COUNTERS[1])}
        if len(first) != 1 or not all("." in name for name in now if not name.endswith(COUNTERS[1])):
            break
        cut += f"{first.pop()}."
        now = {name.partition(".")[2]: value for name, value in now.items() if "." in name}
        yield f"prefix {cut!r} of its names dropped", now
    inner = {".".join(one for one in name.split(".") if one not in PREFIXES[:2]): value for name, value in tensors.items()}
    if len(inner) == len(tensors):
        yield "module and _orig_mod in its names dropped", inner
    for prefix in PREFIXES:  # a framework's checkpoint, which also holds what else was trained
        part = {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}
        left = sorted({name.partition(".")[0] for name in tensors if not name.startswith(f"{prefix}.")})
        yield f"the tensors under {prefix!r}, beside {', '.join(left)}", part
    own = {name.partition(".")[0] for name in expected}
    if len(own) == 1:
        (prefix,) = own
        yield (
            f"prefix {prefix + '.'!r} of the network added to its names",
            {f"{prefix}.{name}": one for name, one in tensors.items()},
        )


def _split(text: str) -> tuple[Path, str]:
    """The file, and the part of it that was asked for. Raises UserError."""
    path, _, part = text.rpartition(":")
    whole, found = (Path(text), "") if Path(text).is_file() or not path else (Path(path), part)
    if not whole.is_file():
        raise missing("weights file", str(whole if found and _suffix(whole) else text))
    if not _suffix(whole):
        raise UserError(f"expected weights as .safetensors or {', '.join(SUFFIXES)}, found {whole.name!r}")
    return whole, found


def _suffix(path: Path) -> str:
    return next((one for one in sorted((*SUFFIXES, ".safetensors"), key=len, reverse=True) if path.name.endswith(one)), "")


def _loaded(path: Path) -> Any:
    _check_archive(path)
    try:
        with torch.serialization.safe_globals(list(PLAIN)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for foreign bytes
        kind = re.search(r"GLOBAL (\S+)", str(error))
        why = f"it holds objects{f' ({kind[1]})' if kind else ''}: save model.state_dict()"
        if "TorchScript" in str(error):
            why = "it is TorchScript: save the state_dict() of the module it was made of"
        why = why if isinstance(error, UnpicklingError) or "TorchScript" in str(error) else reason(error)
        raise UserError(f"{path} is not a plain state dict of tensors (nothing else is loaded): {why}") from None


def _check_archive(path: Path) -> None:
    """Raises UserError for a zip file that unpacks to more than its size: torch stores tensors uncompressed, once each."""
    try:
        with zipfile.ZipFile(path) as archive:
            whole = sum(one.file_size for one in archive.infolist())
    except zipfile.BadZipFile:
        return  # another kind of file, of which torch says so
    if whole > path.stat().st_size:
        raise UserError(f"{path} unpacks to {whole:,} bytes, more than it has: torch.save writes no such file")


def _at(stored: Any, part: str, path: Path) -> Any:
    """The part of a checkpoint at `key[0].key`. Raises UserError."""
    if not re.fullmatch(r"(\w[\w-]*|\[\d+\])(\.\w[\w-]*|\[\d+\])*", part):
        raise UserError(f"{path}: expected a part such as state_dict or state_dict[0], found {part!r}")
    for key in re.findall(r"[\w-]+", part):
        if isinstance(stored, (list, tuple)) and key.isdigit() and int(key) < len(stored):
            stored = stored[int(key)]
        elif isinstance(stored, dict) and key in stored:
            stored = stored[key]
        else:
            known = (
                stored if isinstance(stored, dict) else [f"[{n}]" for n in range(len(stored))] if isinstance(stored, list) else []
            )
            raise UserError(f"{path}: no {key!r} in it on the way to {part}; {did_you_mean(key, map(str, known))[:200]}")
    return stored


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(one, Tensor) and isinstance(key, str) for key, one in value.items())
    )


def _only(stored: Any, where: str, path: Path) -> tuple[str, dict[str, Any]]:
    """Where the only state dict lies, and it. Raises UserError where there are several, or none."""
    if _is_state(stored):
        return where, stored
    if isinstance(stored, list) and stored and all(map(_is_state, stored)):
        if len(stored) > 1:
            raise UserError(
                f"{path} holds {len(stored)} state dicts: name one, {path.name}:{where}[0] to {where}[{len(stored) - 1}]"
            )
        return f"{where}[0]", stored[0]
    if isinstance(stored, dict):
        for key in KEYS:
            if isinstance(stored.get(key), (dict, list)):
                return _only(stored[key], f"{where}.{key}" if where else key, path)
        states = [key for key, value in stored.items() if _is_state(value)]
        if len(states) == 1:
            return (f"{where}.{states[0]}" if where else str(states[0])), stored[states[0]]
        if len(states) > 1:
            raise UserError(
                f"{path} holds {len(states)} state dicts: name one, {path.name}:{states[0]}; {', '.join(map(str, states))}"
            )
        named = all(isinstance(key, str) for key in stored)
        if named and any(isinstance(value, Tensor) and not value.is_nested and value.dim() for value in stored.values()):
            return where, stored
    raise UserError(f"{path}{f', {where}' if where else ''}: expected a state dict of tensors, found {_short(stored)}")


def _beside(stored: Any, inner: str) -> list[str]:
    """What a checkpoint holds beside the part that was read."""
    keys, found = re.findall(r"[\w-]+", inner), list[str]()
    for key in keys:
        for other, value in enumerate(stored) if isinstance(stored, list) else stored.items():
            if str(other) != key:
                found.append(f"[{other}] {_short(value)}" if isinstance(stored, list) else f"{other} {_short(value)}")
        stored = stored[int(key)] if isinstance(stored, list) else stored[key]
    return found


def _short(value: Any) -> str:
    """A value in a few letters."""
    if isinstance(value, Tensor):
        return f"{value.item():.4g}" if value.numel() == 1 and not value.is_meta else f"(tensor {tuple(value.shape)})"
    if isinstance(value, dict):
        return f"({len(value)} tensors)" if _is_state(value) else f"({len(value)} entries)"
    if isinstance(value, (list, tuple)):
        return f"(list of {len(value)})"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value) if isinstance(value, (int, str, bool)) else type(value).__name__
    return "".join(sign for sign in text if sign.isprintable())[:40]
