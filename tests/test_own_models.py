"""Models by what one types: one's own code, a library's, the Hub's; each fault in one line. No data is read before it is needed."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from heard import messages_into
from torch import nn

from robustbench_rkhs import UserError, load_model
from robustbench_rkhs.zoo import timm_models

NETS = """
import torch
from torch import nn
from neighbour import SIZE

def build(width=4, depth=1):
    torch.manual_seed(0)
    hidden = [layer for _ in range(depth - 1) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), nn.Linear(SIZE, width), nn.ReLU(), *hidden, nn.Linear(width, 10))

def fails():
    weights = {}
    return weights["fc"]

def number():
    return 5

def needs(width):
    return build(width)

def mistaken():
    return 1 + "a"
"""


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "neighbour.py").write_text("SIZE = 64\n")
    (tmp_path / "broken.py").write_text("import no_such_package\n")
    (tmp_path / "unfinished.py").write_text("def build(:\n")
    return tmp_path


def test_a_file_s_builder_with_arguments_and_a_warning_of_random_weights(own: Path) -> None:
    said: list[str] = []
    named = load_model(f"{own}/nets.py:build:width=8,depth=2", None, "digits", on_event=messages_into(said))
    assert [tuple(weight.shape) for weight in named.model.parameters() if weight.dim() == 2] == [(8, 64), (8, 8), (10, 8)]
    assert not named.model.training and len(said) == 1 and "WARNING" in said[0] and "--weights" in said[0]
    assert named.test.data == "digits" and named.test.classes == 10


def test_given_weights_are_no_random_ones(own: Path) -> None:
    said: list[str] = []
    torch.save(load_model(f"{own}/nets.py:build").model.state_dict(), own / "mine.pth")
    named = load_model(f"{own}/nets.py:build", str(own / "mine.pth"), None, on_event=messages_into(said))
    assert named.name == "mine" and not said


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("nets.py", "expected .*nets.py:BUILDER"),
        ("nets.py:biuld", "did you mean 'build'"),
        ("nets.py:number", "returned int, expected an nn.Module"),
        ("nets.py:fails", r"failed: KeyError: 'fc' \(nets.py, line 13\)"),
        (
            "nets.py:build:widht=3",
            r"widht=3: build: unknown argument 'widht'; did you mean 'width'\? known: depth, width",
        ),
        ("nets.py:needs", r"nets.py:needs: needs: expected width, found none"),
        ("nets.py:mistaken", r"nets.py:mistaken failed: TypeError: .*unsupported.* \(nets.py, line 22\)"),
        ("nets.py:build:3", "expected field=value"),
        ("absent.py:build", "no Python file"),
        ("broken.py:build", r"cannot import .*no_such_package.*broken.py, line 1"),
        ("unfinished.py:build", "cannot import .*SyntaxError.*unfinished.py, line 1"),
    ],
)
def test_a_fault_in_one_s_own_code_is_one_line_with_its_cause(name: str, line: str, own: Path) -> None:
    with pytest.raises(UserError, match=line) as refused:
        load_model(f"{own}/{name}")
    assert str(refused.value).isprintable()


def test_no_data_is_needed_to_load_a_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RKHS_DATA", str(tmp_path / "nothing"))
    monkeypatch.setenv("RKHS_DOWNLOAD", "0")
    named = load_model("digits_mlp", None, "mnist")
    assert named.shape == (1, 8, 8) and named.classes == 10
    with pytest.raises(UserError, match="'mnist' is not in data root"):
        _ = named.test


def test_a_model_without_data_says_so_when_it_is_asked_for_them(own: Path) -> None:
    with pytest.raises(UserError, match="names no data: add --data"):
        _ = load_model(f"{own}/nets.py:build").test


class Timm(SimpleNamespace):
    """As much of timm as is asked for."""

    def create_model(self, name: str, pretrained: bool) -> nn.Module:
        if name != "tiny.in1k":
            raise RuntimeError(f"Unknown model ({name})")
        if pretrained and not self.online:
            raise ConnectionError("\nno route to the Hub\nmore")
        net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 7))
        net.pretrained_cfg = {"input_size": (3, 4, 4), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.5)}
        net.num_classes = 7
        return net

    def list_models(self) -> list[str]:
        return ["tiny"]


@pytest.mark.parametrize("online", [True, False])
def test_a_model_of_timm_is_normalised_as_it_says(online: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_models, "_library", lambda: Timm(online=online))
    said: list[str] = []
    named = load_model("timm:tiny.in1k", None, None, on_event=messages_into(said))
    x = torch.rand(2, 3, 4, 4)
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.5]).view(3, 1, 1)
    torch.testing.assert_close(named.model(x), named.model[1]((x - mean) / std))
    assert named.shape == (3, 4, 4) and named.classes == 7
    assert said == (
        [] if online else ["WARNING: the weights of timm:tiny.in1k are RANDOM, they could not be downloaded: no route to the Hub"]
    )
    with pytest.raises(UserError, match=r"timm has no model 'tinny': RuntimeError: Unknown model .*did you mean 'tiny'"):
        load_model("timm:tinny")


@pytest.mark.parametrize(("name", "library"), [("timm:resnet18.a1_in1k", "timm"), ("hf:owner/name", "huggingface_hub")])
def test_a_library_that_is_missing_is_one_line(name: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError, match=f"pip install {library}"):
        load_model(name)


def test_a_hub_repository_is_a_checkpoint_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    folder = Path(__file__).parent.parent / "checkpoints" / "digits_mlp"

    def download(repository: str, file: str, revision: str | None) -> str:
        asked.append((repository, file, revision))
        return str(folder / file)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=download))
    named = load_model("hf:owner/digits@v1")
    assert named.name == "digits@v1" and named.classes == 10
    assert {file for _, file, _ in asked} == {"config.json", "recipe.yaml", "model.safetensors"}
    assert {(repository, revision) for repository, _, revision in asked} == {("owner/digits", "v1")}
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=lambda *a, **k: 1 / 0))
    with pytest.raises(UserError, match="hf:owner/name could not be downloaded: division by zero"):
        load_model("hf:owner/name")
    with pytest.raises(UserError, match="expected hf:owner/name"):
        load_model("hf:../x/y")
