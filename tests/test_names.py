"""Names of models: checked once, and no result lands outside of the folder that a name says."""

import shutil
from pathlib import Path

import pytest
import torch

from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.nodes.names import LONGEST, file_word, folder_of, plain_name
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.zoo import NamedModel, load_model

ODD = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "/etc",
    "a\\b",
    "a\nb",
    "a\x00b",
    "a\u202eb",
    "\u200b",
    ".hidden",
    "-rf",
    " a",
    "a ",
    "x" * 400,
    "é" * 101,
]


@pytest.mark.parametrize("name", ODD, ids=repr)
def test_what_is_no_plain_name_is_refused_wherever_results_are_named(tmp_path, name):
    model, data = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)), (torch.rand(2, 1, 2, 2), torch.tensor([0, 1]))
    for door in (
        lambda: plain_name(name),
        lambda: folder_of(tmp_path, name),
        lambda: NamedModel(name, model, None),
        lambda: evaluate(model, data, eps=(0.1,), name=name, folder=tmp_path / "out"),
    ):
        with pytest.raises(UserError, match="model name") as refused:
            door()
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 300
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize(
    "name", ["digits_mlp", "robust_vgg@mine", "a~smoothed-0.25", "Class.build", "模型", "v1.0+cu12", "x" * LONGEST]
)
def test_ordinary_names_are_taken(tmp_path, name):
    assert folder_of(tmp_path, name).parent == tmp_path and NamedModel(name, torch.nn.Identity(), None).name == name


def test_a_link_leads_no_result_elsewhere(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mine").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"is a link to .*elsewhere"):
        folder_of(tmp_path, "mine")
    assert folder_of(tmp_path / "mine", "x").parent == tmp_path / "mine"  # the folder of all results may be one


def test_file_words_are_short_safe_and_different():
    words = [file_word(text) for text in ("a", "x" * 300, "x" * 301, "../../etc", "a b", "=1|2")]
    assert len(set(words)) == len(words) and all(len(word) < 80 and "/" not in word for word in words)


def test_a_checkpoint_is_called_by_its_folder_however_that_is_typed(tmp_path, monkeypatch):

    shipped = Path(__file__).parent.parent / "checkpoints" / "digits_mlp"
    shutil.copytree(shipped, tmp_path / "theirs")
    monkeypatch.chdir(tmp_path / "theirs")
    assert {load_model(name).name for name in (".", "../theirs", "./", str(tmp_path / "theirs"))} == {"theirs"}
