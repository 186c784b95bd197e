"""A checkpoint is a folder: config.json, model.safetensors, recipe.yaml, metrics.jsonl, README.md (its card)."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from robustbench_rkhs.data import Split
from robustbench_rkhs.nodes.code_names import CLOSED, Code
from robustbench_rkhs.nodes.node import UserError, did_you_mean
from robustbench_rkhs.nodes.reasons import reason as reason_of
from robustbench_rkhs.runtime.digests import weights_digest
from robustbench_rkhs.runtime.files import write_text, write_whole
from robustbench_rkhs.training.recipe import TrainRecipe

FORMAT = 1
HALF_FROM = 100_000
"""Numbers in a tensor from which `--half` rounds it."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model, in eval mode on the CPU, with its recipe and test data."""

    name: str
    model: nn.Module
    recipe: TrainRecipe
    config: dict[str, Any]
    weights: str
    """sha256 of the tensors."""


def build(recipe: TrainRecipe, shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """The recipe's network with its seeded initial weights; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return recipe.network.build(shape, classes)


def config_of(recipe: TrainRecipe, test: Split, state: dict[str, Tensor], **more: Any) -> dict[str, Any]:
    """What config.json holds."""
    return {
        "format": FORMAT,
        "shape": list(test.shape),
        "classes": test.classes,
        "data": test.data,
        "data_digest": test.digest,
        "weights": weights_digest(state),
        "network": recipe.model_dump(mode="json")["network"],
        **more,
    }


def save(folder: Path, recipe: TrainRecipe, test: Split, state: dict[str, Tensor], card: str, **more: Any) -> None:
    """Write weights, recipe and card, then config.json, whose digest makes the folder valid. Raises UserError."""
    stored = as_stored(state)
    if folder.is_dir():
        (folder / "config.json").unlink(missing_ok=True)
    write_whole(folder / "model.safetensors", lambda path: save_file(stored, path))
    write_text(folder / "recipe.yaml", recipe.yaml())
    write_text(folder / "README.md", card)
    write_text(folder / "config.json", json.dumps(config_of(recipe, test, stored, **more), indent=2) + "\n")


def as_stored(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor with memory of its own, on the CPU: one that a network has under two names is stored under both."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def halve(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Large floating tensors rounded to half precision. Small ones carry little of the size and most of the error: kept."""
    large = {name for name, tensor in state.items() if tensor.is_floating_point() and tensor.numel() >= HALF_FROM}
    return {name: tensor.half() if name in large else tensor for name, tensor in state.items()}


def load(folder: str | Path, code: Code = CLOSED) -> Checkpoint:
    """A checkpoint folder. Every tensor's name, shape and finiteness and the digest are checked; nothing is unpickled.

    `code`: whose code its recipe may name; nobody's where not given, so that nothing in the folder is imported.
    Raises UserError where the folder is missing, half-written or altered, or names code that is not allowed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no checkpoint folder {str(folder)!r}")
    for file in ("config.json", "recipe.yaml", "model.safetensors"):
        if not (folder / file).is_file():
            raise UserError(f"checkpoint {str(folder)!r} is half-written: {file} is missing")
    try:
        config = json.loads((folder / "config.json").read_text())
        stored = yaml.safe_load((folder / "recipe.yaml").read_text())
        shape, classes = tuple(int(side) for side in config["shape"]), int(config["classes"])
        digest = str(config["weights"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"checkpoint {str(folder)!r}: unreadable config.json or recipe.yaml ({reason_of(error)})") from None
    if config.get("format") != FORMAT:
        raise UserError(f"checkpoint {str(folder)!r}: expected format {FORMAT}, found {config.get('format')!r}")
    if not 1 <= len(shape) <= 3 or not all(0 < side <= 4096 for side in shape) or not 1 <= classes <= 100_000:
        raise UserError(f"checkpoint {str(folder)!r}: implausible shape {shape} or class count {classes}")
    if not isinstance(stored, dict):
        raise UserError(f"checkpoint {str(folder)!r}: recipe.yaml is not a mapping")
    recipe = TrainRecipe.parse(stored, f"{folder}/recipe.yaml", code)
    state = read_safetensors(folder / "model.safetensors")
    found = weights_digest(state)
    if found != digest:
        raise UserError(f"checkpoint {str(folder)!r}: weights have digest {found[:12]}, config.json names {digest[:12]}")
    model = build(recipe, shape, classes)
    fill(model, state, str(folder / "model.safetensors"))
    return Checkpoint(folder.name, model.eval(), recipe, config, weights_digest(model.state_dict()))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file. Raises UserError where it is truncated or foreign."""
    try:
        with safe_open(path, framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} is not a readable safetensors file: {reason_of(error)}") from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """A .safetensors file, or a .pth file of a plain state dict (read with weights_only: nothing is executed)."""
    if not path.is_file():
        raise UserError(f"no weights file {str(path)!r}")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix not in (".pth", ".pt"):
        raise UserError(f"expected weights as .safetensors, .pth or .pt, found {path.name!r}")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for foreign bytes
        reason = "it holds objects: save model.state_dict()" if isinstance(error, UnpicklingError) else reason_of(error)
        raise UserError(f"{path} is not a plain state dict of tensors (nothing else is loaded): {reason}") from None
    for key in ("state_dict", "model"):
        if isinstance(stored, dict) and isinstance(stored.get(key), dict):
            stored = stored[key]
    if not isinstance(stored, dict) or not all(isinstance(tensor, Tensor) for tensor in stored.values()):
        raise UserError(f"{path}: expected a state dict of tensors, found {type(stored).__name__}")
    return stored


def fill(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load a state dict after checking every name, shape and value. Raises UserError."""
    expected = model.state_dict()
    for name in state:
        if name not in expected:
            raise UserError(f"{source}: unexpected tensor {name!r}; {did_you_mean(name, expected)[:200]}")
    for name, tensor in expected.items():
        if name not in state:
            raise UserError(f"{source}: tensor {name!r} is missing")
        if state[name].shape != tensor.shape:
            raise UserError(f"{source}: {name!r} has shape {tuple(state[name].shape)}, expected {tuple(tensor.shape)}")
        if state[name].is_complex() != tensor.is_complex() or not state[name].isfinite().all():
            raise UserError(f"{source}: {name!r} holds NaN, infinity or a foreign type")
    for name, other in _tied(expected):
        if not torch.equal(state[name], state[other]):
            raise UserError(f"{source}: {name!r} and {other!r} are one tensor in this network, and differ")
    model.load_state_dict(state)


def _tied(state: dict[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Pairs of names that a network has for one tensor."""
    first: dict[tuple[object, ...], str] = {}
    for name, tensor in state.items():
        place = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        other = first.setdefault(place, name) if tensor.numel() else name
        if other != name:
            yield other, name
