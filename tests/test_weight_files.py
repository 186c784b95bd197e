"""Weight files of others: prefixes, keys, lists and endings; what lies beside the weights is named; nothing is unpickled."""

import argparse
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from heard import messages_into
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from robustbench_rkhs import UserError, load_model
from robustbench_rkhs.zoo.weights import SUFFIXES, fill_matched, read_weights

FOREIGN = Path(os.environ.get("RKHS_FOREIGN", "../shared/foreign"))
OPTIMIZER = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def trained() -> nn.Sequential:
    torch.manual_seed(3)
    model = net()
    model[1].running_mean.normal_()
    return model


STATE = {name: value.clone() for name, value in trained().state_dict().items()}


def renamed(change: Any) -> dict[str, Tensor]:
    return {change(name): value for name, value in STATE.items()}


def without_counters() -> dict[str, Tensor]:
    return {name: value for name, value in STATE.items() if "num_batches" not in name}


FILES: dict[str, tuple[Any, str, str]] = {
    "plain": (STATE, "", ""),
    "ordered": (OrderedDict(STATE), "", ""),
    "old, without counters": (without_counters(), "", ""),
    "DataParallel": (nn.DataParallel(trained()).state_dict(), "", r"prefix 'module\.' of its names dropped"),
    "compiled": (renamed(lambda name: f"_orig_mod.{name}"), "", r"prefix '_orig_mod\.'"),
    "both": (renamed(lambda name: f"module._orig_mod.{name}"), "", r"prefix 'module\._orig_mod\.'"),
    "an inner container": (renamed(lambda name: name.replace(".", ".module.", 1)), "", "module and _orig_mod in its names dropped"),
    "an average": (AveragedModel(trained()).state_dict(), "", r"prefix 'module\.'"),
    "state_dict": (
        {"state_dict": STATE, "epoch": 7, "acc": 0.5013},
        "",
        r"read state_dict \(9 tensors\); beside it: epoch 7, acc 0.5013$",
    ),
    "net": ({"net": renamed(lambda name: f"module.{name}"), "acc": 93.1, "epoch": 12}, "", "read net .*prefix"),
    "model": ({"model": STATE, "optimizer": OPTIMIZER}, "", r"read model .*optimizer \(2 entries\)"),
    "model_state_dict": ({"epoch": 3, "model_state_dict": STATE, "optimizer_state_dict": OPTIMIZER}, "", "read model_state_dict"),
    "ema alone": ({"ema": STATE, "updates": 5}, "", r"read ema .*updates 5"),
    "model and ema": ({"model": STATE, "ema": STATE}, "", r"read model .*beside it: ema \(9 tensors\)"),
    "ema asked for": (
        {"model": {"other.weight": torch.ones(1)}, "ema": STATE},
        "ema",
        r"read ema .*beside it: model \(1 tensors\)",
    ),
    "a list": (
        {"state_dict": [STATE, {"0.weight": torch.ones(2)}], "err": 0.5},
        "state_dict[0]",
        r"read state_dict\[0\] .*\[1\] \(1 tensors\)",
    ),
    "a list of one": ({"state_dict": [STATE], "err": torch.tensor(0.25)}, "", r"read state_dict\[0\] .*err 0.25"),
    "another key": ({"classifier": STATE, "epoch": 1}, "", "read classifier"),
    "Lightning": (
        {
            "epoch": 3,
            "pytorch-lightning_version": "2.4.0",
            "state_dict": {**renamed(lambda name: f"model.{name}"), "loss.weight": torch.ones(3)},
            "hyper_parameters": argparse.Namespace(lr=0.1),
        },
        "",
        "pytorch-lightning_version 2.4.0.*hyper_parameters Namespace.*under 'model', beside loss",
    ),
    "NumPy beside": ({"state_dict": STATE, "best": np.float64(0.9), "curve": np.arange(3.0)}, "", "best 0.9, curve ndarray"),
    "numbers among the tensors": ({**STATE, "epoch": 4}, "", r"read its tensors \(9 tensors\); beside it: epoch 4"),
    "half precision": ({name: value.half() if value.is_floating_point() else value for name, value in STATE.items()}, "", ""),
}


@pytest.mark.parametrize("name", FILES)
def test_the_weights_of_a_checkpoint_are_found_and_what_lies_beside_them_is_named(name: str, tmp_path: Path) -> None:
    stored, part, line = FILES[name]
    torch.save(stored, tmp_path / "theirs.pth")
    (tmp_path / "nets.py").write_text("from test_weight_files import net\n")
    said: list[str] = []
    weights = str(tmp_path / "theirs.pth") + (f":{part}" if part else "")
    named = load_model(f"{tmp_path}/nets.py:net", weights, on_event=messages_into(said))
    wanted = stored if name == "half precision" else STATE
    for key, value in named.model.state_dict().items():
        assert torch.equal(value, wanted[key].to(value.dtype)) or key.endswith("num_batches_tracked")
    assert named.name.startswith("theirs") and bool(said) is bool(line)

    assert re.search(line, " ".join(said)), said
    assert all(one.isprintable() for one in said)


@pytest.mark.parametrize("ending", SUFFIXES)
def test_every_ending_is_read_and_cut_from_the_name(ending: str, tmp_path: Path) -> None:
    torch.save({"state_dict": STATE}, tmp_path / f"theirs{ending}", _use_new_zipfile_serialization=ending != ".t7")
    found = read_weights(str(tmp_path / f"theirs{ending}"))
    assert found.name == "theirs" and found.tensors.keys() == STATE.keys()
    assert read_weights(str(tmp_path / f"theirs{ending}") + ":state_dict").name == "theirs-state_dict"


class Trap:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def _trap(path: Path) -> None:
    torch.save({"state_dict": STATE, "extra": Trap(str(path.parent / "sprung"))}, path)


BROKEN: dict[str, tuple[Any, str, str]] = {
    "code": (_trap, "", "it holds objects .*: save model.state_dict"),
    "a whole model": (lambda path: torch.save(net(), path), "", r"it holds objects \(torch.nn.modules.container.Sequential\)"),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps({"a": Path})), "", "nothing else is loaded"),
    "text": (lambda path: path.write_text("weights"), "", "nothing else is loaded"),
    "TorchScript": (lambda path: torch.jit.script(nn.Linear(2, 2)).save(path), "", "it is TorchScript: save the state_dict"),
    "several": (lambda path: torch.save({"state_dict": [STATE, STATE]}, path), "", r"2 state dicts: name one, .*:state_dict\[0\]"),
    "two keys": (
        lambda path: torch.save({"first": STATE, "second": STATE}, path),
        "",
        "2 state dicts: name one, .*:first; first, second",
    ),
    "none": (lambda path: torch.save({"epoch": 3}, path), "", r"expected a state dict of tensors, found \(1 entries\)"),
    "no such part": (
        lambda path: torch.save({"state_dict": [STATE]}, path),
        "state_dict[4]",
        r"no '4' in it on the way to state_dict\[4\]",
    ),
    "a wrong key": (lambda path: torch.save({"state_dict": STATE}, path), "state_dct", "did you mean 'state_dict'"),
    "no part": (lambda path: torch.save({"state_dict": STATE}, path), "a b", "expected a part such as"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_state_dict_is_refused_in_one_line_and_never_run(name: str, tmp_path: Path) -> None:
    write, part, line = BROKEN[name]
    write(tmp_path / "theirs.pth")
    with pytest.raises(UserError, match=line) as refused:
        read_weights(str(tmp_path / "theirs.pth") + (f":{part}" if part else ""))
    assert str(refused.value).isprintable() and not (tmp_path / "sprung").exists()


def test_other_files_and_other_networks_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "weights.h5").touch()
    for text, line in (("weights.h5", "expected weights as"), ("none.pth", "no weights file"), ("none.pth:net", "no weights file")):
        with pytest.raises(UserError, match=line):
            read_weights(str(tmp_path / text))
    torch.save({name.replace("3.", "fc."): value for name, value in STATE.items()}, tmp_path / "theirs.pth")
    with pytest.raises(UserError, match=r"unexpected tensor 'fc.weight'; did you mean"):
        fill_matched(net(), read_weights(str(tmp_path / "theirs.pth")), "theirs.pth")


def test_a_network_behind_its_normalisation_takes_the_weights_of_the_network_alone(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "theirs.pth")
    whole = nn.Sequential(OrderedDict(scale=nn.Identity(), net=net()))
    said = fill_matched(whole, read_weights(str(tmp_path / "theirs.pth")), "theirs.pth")
    assert said == "prefix 'net.' of the network added to its names" and torch.equal(whole.net[3].weight, STATE["3.weight"])


def built_like(state: dict[str, Tensor]) -> nn.Module:
    """A network that has these tensors."""
    root = nn.Module()
    for name, value in state.items():
        at = root
        *path, last = name.split(".")
        for part in path:
            if not hasattr(at, part):
                at.add_module(part, nn.Module())
            at = getattr(at, part)
        at.register_buffer(last, torch.zeros_like(value))
    return root


THEIRS = {
    "abc_cifar_conv_small_pgd.pth": "",
    "abc_mnist_conv_small_nat.pth": "",
    "abc_resnet2b.pth": "",
    "kw_l2_cifar_small_36px.pth": "state_dict[0]",
    "kw_linf_mnist_small_0_3.pth": "state_dict[0]",
    "kw_mnist.pth": "",
    "mnbab_resnet_4b_bn_adv.pth": "",
    "oval_cifar_base_kw.pth": "",
    "oval_cifar_sgd_8px.pth": "",
    "oval_mnist_wide_kw.pth": "",
    "sdp/cifar10_cnn_a.pth": "",
    "sdp/cifar10_convsmall.pth": "",
    "sdp/mnist_convsmall.pth": "",
    "sdp/mnist_mlp.pth": "",
}


@pytest.mark.parametrize("name", THEIRS)
def test_every_foreign_file_fills_its_network(name: str) -> None:
    if not (path := FOREIGN / name).is_file():
        pytest.skip(f"no foreign network {path}: set RKHS_FOREIGN")
    stored = torch.load(path, map_location="cpu", weights_only=True)
    state = stored.get("state_dict", stored)
    state = state[0] if isinstance(state, list) else state
    found = read_weights(str(path) + (f":{THEIRS[name]}" if THEIRS[name] else ""))
    model = built_like(state)
    fill_matched(model, found, name)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert bool(found.said) is (state is not stored)


def test_no_foreign_file_is_forgotten() -> None:
    if not FOREIGN.is_dir():
        pytest.skip(f"no foreign networks in {FOREIGN}: set RKHS_FOREIGN")
    assert {str(path.relative_to(FOREIGN)) for path in FOREIGN.rglob("*.pth")} <= THEIRS.keys()


def small(**changed: torch.Tensor) -> dict[Any, Any]:
    return {"0.weight": torch.rand(3, 4), "0.bias": torch.rand(3), **changed}


HOSTILE = {
    "keys that are no names": ({1: torch.rand(3)}, "expected a state dict"),
    "a name without end": (small(**{"x" * 10**6: torch.rand(3)}), "expected names of up to"),
    "sparse": (small(**{"0.weight": torch.rand(3, 4).to_sparse()}), "expected a dense tensor"),
    "of the device meta": (small(**{"0.weight": torch.rand(3, 4, device="meta")}), "expected a dense tensor"),
    "quantised": (small(**{"0.weight": torch.quantize_per_tensor(torch.rand(3, 4), 0.1, 0, torch.qint8)}), "expected a dense"),
    "whole numbers": (small(**{"0.weight": torch.ones(3, 4, dtype=torch.int64)}), "expected torch.float32"),
    "complex": (small(**{"0.weight": torch.rand(3, 4) * 1j}), "expected torch.float32"),
    "infinite once they are float32": (small(**{"0.weight": torch.full((3, 4), 1e300, dtype=torch.float64)}), "beyond"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_of_weights_is_one_line(tmp_path: Path, name: str) -> None:
    state, line = HOSTILE[name]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UserError, match=line) as refused:
        fill_matched(nn.Sequential(nn.Linear(4, 3)), read_weights(str(tmp_path / "w.pth")), "w.pth")
    assert len(str(refused.value)) < 500


def test_a_file_of_weights_that_unpacks_to_more_than_its_size_is_refused_unread(tmp_path: Path) -> None:
    torch.save(small(), tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as plain, zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name) + bytes(10**6 if name.endswith("data/0") else 0))
    with pytest.raises(UserError, match="unpacks to"):
        read_weights(str(tmp_path / "b.pth"))
