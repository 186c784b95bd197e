"""A checkpoint is a folder: config.json, model.safetensors, recipe.yaml, metrics.jsonl, README.md (its card)."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from robustbench_rkhs.data import Split
from robustbench_rkhs.identity import fixed_logits, identity_of
from robustbench_rkhs.networks.own import OwnNetwork
from robustbench_rkhs.networks.skeleton import skeleton
from robustbench_rkhs.nodes.code_names import CLOSED, Code
from robustbench_rkhs.nodes.differences import changes
from robustbench_rkhs.nodes.documents import json_of, read_text, yaml_of
from robustbench_rkhs.nodes.guard import guarded
from robustbench_rkhs.nodes.limits import OWN, STRANGERS, Limits
from robustbench_rkhs.nodes.node import UserError, did_you_mean
from robustbench_rkhs.nodes.reasons import reason as reason_of
from robustbench_rkhs.runtime.digests import weights_digest
from robustbench_rkhs.runtime.files import flush, write_text
from robustbench_rkhs.runtime.seals import (
    BLANK,
    Damaged,
    read_record,
    seal_of,
    sha256_of,
    write_commented,
    write_record,
    write_sealed,
)
from robustbench_rkhs.runtime.weights_file import weights_file
from robustbench_rkhs.training.recipe import TrainRecipe
from robustbench_rkhs.verifier.probes import agree

FORMAT, UNSEALED = 2, 1
"""Of config.json: since 2 all that is read of the folder is sealed. What was written before is read too."""
SEALED, METRICS = ("recipe.yaml", "model.safetensors"), "metrics.jsonl"
"""Files whose seals config.json names; and one without a place for a seal, whose sha256 it names."""
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
    model = build(recipe, test.shape, test.classes).eval()
    fill(model, state, "the weights")
    return {
        "format": FORMAT,
        "shape": list(test.shape),
        "classes": test.classes,
        "data": test.data,
        "data_digest": test.digest,
        "weights": weights_digest(state),
        "network": recipe.model_dump(mode="json")["network"],
        **_function(model, test.shape),
        **more,
    }


def save(folder: Path, recipe: TrainRecipe, test: Split, state: dict[str, Tensor], card: str, **more: Any) -> None:
    """Write weights, recipe and card, then config.json, whose digest makes the folder valid. Raises UserError."""
    stored = as_stored(state)
    if folder.is_dir():
        (folder / "config.json").unlink(missing_ok=True)
    write_safetensors(folder / "model.safetensors", stored)
    write_commented(folder / "recipe.yaml", recipe.yaml())
    write_text(folder / "README.md", card)
    _write_config(folder, config_of(recipe, test, stored, **more))


def seal(folder: str | Path) -> None:
    """Seal a checkpoint folder from before files were sealed; weights, recipe and configuration stay what they are.

    Raises UserError where the folder does not load.
    """
    folder = Path(folder)
    loaded = load(folder)
    state = read_safetensors(folder / "model.safetensors")
    recipe = (folder / "recipe.yaml").read_text()
    if not seal_of(folder / "recipe.yaml"):
        write_commented(folder / "recipe.yaml", recipe)
    for name, tensors in (("model", state), ("last", None)):
        path = folder / f"{name}.safetensors"
        if path.is_file() and not seal_of(path):
            write_safetensors(path, tensors or read_safetensors(path))
    _write_config(folder, loaded.config | _function(loaded.model, tuple(loaded.config["shape"])))


def write_safetensors(path: Path, state: dict[str, Tensor]) -> str:
    """Tensors with their seal in the header's metadata. Returns the seal."""
    return write_sealed(path, lambda temporary: save_file(state, temporary, {"seal": BLANK}))


def reopen(folder: Path) -> None:
    """Before a finished training goes on: its metrics will be others than those that config.json names."""
    path = folder / "config.json"
    config = read_record(path) if path.is_file() else {}
    if METRICS in config.get("seals", {}):
        del config["seals"][METRICS]
        write_record(path, config)


def _function(model: nn.Module, shape: tuple[int, ...]) -> dict[str, Any]:
    """What config.json says of the function that the folder holds: its key, and its answers to the fixed images."""
    found = identity_of(model, shape)
    return {"key": found.key, "logits": [list(row) for row in found.logits]}


def _write_config(folder: Path, config: dict[str, Any]) -> None:
    """config.json, last of all: with the seals of the other files it makes the folder valid."""
    seals = {name: seal_of(folder / name) for name in SEALED}
    if (folder / METRICS).is_file():
        flush(folder / METRICS)
        seals[METRICS] = sha256_of(folder / METRICS)
    write_record(folder / "config.json", {**config, "format": FORMAT, "seals": seals})


def as_stored(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor with memory of its own, on the CPU: one that a network has under two names is stored under both."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}


def halve(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Large floating tensors rounded to half precision. Small ones are kept: they add little size and most of the error."""
    large = {name for name, tensor in state.items() if tensor.is_floating_point() and tensor.numel() >= HALF_FROM}
    return {name: tensor.half() if name in large else tensor for name, tensor in state.items()}


def load(folder: str | Path, code: Code = CLOSED, limits: Limits = OWN) -> Checkpoint:
    """A checkpoint folder. Every tensor's name, shape and finiteness and the digest are checked; nothing is unpickled.

    `code`: whose code its recipe may name; nobody's where not given, so that nothing in the folder is imported.
    `limits`: the most that its files may ask for. Raises UserError where the folder is missing, half-written or altered, names code
    that is not allowed, or asks for more than the limits; memory is taken for the network once all else fits.
    """
    said = described(folder, code, limits)
    path = said.folder / "model.safetensors"
    with guarded(f"checkpoint {str(folder)!r}"):
        model = build(said.recipe, said.shape, said.classes)
        fill(model, read_safetensors(path), str(path))
        _check_function(said.folder, said.config, said.recipe, model.eval(), code)
        name = Path(os.path.abspath(said.folder)).name
        return Checkpoint(name, model.eval(), said.recipe, said.config, weights_digest(model.state_dict()))


@dataclass(frozen=True)
class Described:
    """What a checkpoint folder says of itself, its files checked against one another; its network is not made yet."""

    folder: Path
    config: dict[str, Any]
    recipe: TrainRecipe
    shape: tuple[int, ...]
    classes: int
    numbers: int
    """How many its tensors hold."""
    weights: str
    """sha256 of the tensors, as stored."""


def described(folder: str | Path, code: Code = CLOSED, limits: Limits = STRANGERS) -> Described:
    """A checkpoint folder, read without making its network. Raises UserError as `load` does.

    Names, shapes and types of the tensors are held against the network on the device `meta`, then the tensors are read a piece at a
    time. Cost: a few MB of memory, and 4 s a GiB of weights.
    """
    with guarded(f"checkpoint {str(folder)!r}"):
        return _described(Path(folder), code, limits)


def _described(folder: Path, code: Code, limits: Limits) -> Described:
    """The folder's files, one after the other, the cheap ones first."""
    if not folder.is_dir():
        raise UserError(f"no checkpoint folder {str(folder)!r}")
    needed = ("config.json", "model.safetensors", "recipe.yaml")
    if missing := [file for file in needed if not (folder / file).is_file()]:
        words = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        raise UserError(f"checkpoint {str(folder)!r} is incomplete: {words}; expected {', '.join(needed[:-1])} and {needed[-1]}")
    texts = {file: read_text(folder / file, limits) for file in ("config.json", "recipe.yaml")}
    config = json_of(texts["config.json"], f"{folder}/config.json", limits)
    if not isinstance(config, dict):
        raise UserError(f"checkpoint {str(folder)!r}: config.json is not a mapping")
    _check_seals(folder, config, "recipe.yaml")
    stored = yaml_of(texts["recipe.yaml"], f"{folder}/recipe.yaml", limits)
    try:
        shape, classes = tuple(int(side) for side in config["shape"]), int(config["classes"])
        digest = str(config["weights"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(f"checkpoint {str(folder)!r}: config.json lacks what it must say ({reason_of(error)})") from None
    if not 1 <= len(shape) <= 3 or not all(0 < side <= 4096 for side in shape) or not 1 <= classes <= 100_000:
        raise UserError(f"checkpoint {str(folder)!r}: implausible shape {shape} or class count {classes}")
    if not isinstance(stored, dict):
        raise UserError(f"checkpoint {str(folder)!r}: recipe.yaml is not a mapping")
    recipe = TrainRecipe.parse(stored, f"{folder}/recipe.yaml", code)
    tensors = weights_file(folder / "model.safetensors", limits)
    if not isinstance(recipe.network, OwnNetwork):  # whose code need not know the device `meta`
        tensors.must_fit(skeleton(recipe.network, shape, classes, len(tensors.tensors), tensors.numbers))
    _check_seals(folder, config, "model.safetensors")
    config.pop("seal", None)
    found = tensors.digest()
    if found != digest:
        raise UserError(f"checkpoint {str(folder)!r}: weights have digest {found[:12]}, config.json names {digest[:12]}")
    return Described(folder, config, recipe, shape, classes, tensors.numbers, found)


def _check_seals(folder: Path, config: dict[str, Any], name: str) -> None:
    """Raises UserError where config.json is of another format, Damaged where it or this file is not as it was written."""
    if config.get("format") not in (FORMAT, UNSEALED):
        raise UserError(f"checkpoint {str(folder)!r}: expected format {FORMAT}, found {config.get('format')!r:.40}")
    if config["format"] == UNSEALED:
        return
    seal_of(folder / "config.json", required=True)
    said = config.get("seals")
    if not isinstance(said, dict) or seal_of(folder / name, required=True) != said.get(name):
        raise Damaged(folder / name, "it is not the file that config.json names")


def _check_function(folder: Path, config: dict[str, Any], recipe: TrainRecipe, model: nn.Module, code: Code) -> None:
    """Raises UserError where config.json is of another network than the recipe, or of other answers than this network gives."""
    ours, theirs = recipe.model_dump(mode="json")["network"], config.get("network", {})
    if ours != theirs and not _same_network(recipe, theirs, code):
        differ = "; ".join(changes(theirs, ours)[:3]).replace(" before", " in config.json").replace(" now", " in recipe.yaml")
        raise UserError(f"checkpoint {str(folder)!r}: config.json and recipe.yaml name different networks ({differ[:300]})")
    said = config.get("logits")
    found = fixed_logits(model, tuple(config["shape"])) if said else ()
    if found and not (isinstance(said, list) and agree(said, found)):
        raise UserError(f"checkpoint {str(folder)!r}: the network's logits on the fixed images differ from those in config.json")


def _same_network(recipe: TrainRecipe, stored: Any, code: Code) -> bool:
    """Whether a network that an older version stored with fewer fields is the recipe's network."""
    try:
        whole = {**recipe.model_dump(mode="json"), "network": stored}
        return bool(TrainRecipe.parse(whole, "config.json", code).network == recipe.network)
    except UserError:
        return False


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file. Raises UserError where it is damaged, truncated or foreign."""
    try:
        seal_of(path)
        with safe_open(path, framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} is not a readable safetensors file: {reason_of(error)}") from None


def fill(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load a state dict after checking every name, shape and value. Raises UserError."""
    expected = model.state_dict()
    for name in state:
        if name not in expected:
            raise UserError(f"{source}: unexpected tensor {name[:80]!r}; {did_you_mean(name[:80], expected)[:200]}")
    for name, tensor in expected.items():
        if name not in state:
            raise UserError(f"{source}: tensor {name!r} is missing")
        if reason := _misfit(state[name], tensor):
            raise UserError(f"{source}: {name!r} {reason}")
    for name, other in _tied(expected):
        if not torch.equal(state[name], state[other]):
            raise UserError(f"{source}: {name!r} and {other!r} are one tensor in this network, and differ")
    model.load_state_dict(state)


def _misfit(given: Tensor, expected: Tensor) -> str:
    """Why a stored tensor can't stand in the place of this one; empty if it can."""
    if given.layout != torch.strided or given.is_nested or given.is_quantized or given.is_meta:
        return "is sparse, nested, quantised or empty of numbers, expected a dense tensor"
    if given.shape != expected.shape:
        return f"has shape {tuple(given.shape)}, expected {tuple(expected.shape)}"
    if given.is_floating_point() != expected.is_floating_point() or given.is_complex() != expected.is_complex():
        return f"holds {given.dtype}, expected {expected.dtype}"
    if not given.to(expected.dtype).isfinite().all():  # as it will be held: a large float64 is infinite in float32
        return f"holds NaN, infinity or a number beyond {expected.dtype}"
    return ""


def _tied(state: dict[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Pairs of names that refer to the same tensor in a network."""
    first: dict[tuple[object, ...], str] = {}
    for name, tensor in state.items():
        place = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        other = first.setdefault(place, name) if tensor.numel() else name
        if other != name:
            yield other, name
