"""Files that are not there: refused before anything large is imported, with the name that was perhaps meant."""

from types import SimpleNamespace

import pytest

from robustbench_rkhs.nodes.missing import missing
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.paths import check_names
from robustbench_rkhs.submission.adversarials import named_by
from robustbench_rkhs.verdicts import Adversarials
from robustbench_rkhs.zoo.builders import load_builder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RKHS_DATA", str(tmp_path / "root"))
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "shared.npz").touch()
    for name in ("net.pt", "net.onnx", "nets.py", "mine.npz"):
        (tmp_path / name).write_text("from json import dumps\nimport os\nclass Own: ...\nown = Own()\n")
    return tmp_path


REFUSED = {
    "weights": (["nets.py:Own"], "nett.pt", "mine.npz", "no weights file 'nett.pt'; did you mean 'net.pt'?"),
    "part of weights": (["nets.py:Own"], "nett.pt:ema", "mine.npz", "no weights file 'nett.pt:ema'"),
    "data": (["nets.py:Own"], "net.pt", "mnie.npz", "no file 'mnie.npz' here or in data root .*; did you mean 'mine.npz'?"),
    "code": (["net.py:Own"], None, None, "no Python file 'net.py'; did you mean 'nets.py'?"),
    "onnx": (["nett.onnx"], None, None, "no ONNX file 'nett.onnx'; did you mean 'net.onnx'?"),
    "a folder that is not there": (["no/net.onnx"], None, None, "no ONNX file 'no/net.onnx'; there is no folder 'no'$"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_is_not_there_is_named_with_its_neighbour(folder, case):
    names, weights, data, line = REFUSED[case]
    with pytest.raises(UserError, match=line):
        check_names(names, weights, data)


@pytest.mark.parametrize("data", ["mine.npz", "shared.npz", "digits", None])
@pytest.mark.parametrize("weights", ["net.pt", "net.pt:ema", None])
def test_what_is_there_passes(folder, weights, data):
    check_names(["nets.py:Own", "net.onnx"], weights, data)


ELSEWHERE = ["hf:owner/net.onnx", "timm:resnet18", "s3://bucket/net.onnx", "package.module:build", "nets.py:Own:width=3"]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_names_that_are_looked_for_elsewhere_pass(folder, name):
    check_names([name], None, "sets.py:Own:path=absent.npz")


def test_a_name_that_no_file_can_have_is_refused_as_any_other(folder):
    for words in (("x" * 300 + ".pt", None), (None, "x" * 300 + ".npz"), ("a\0.pt", None)):
        with pytest.raises(UserError, match=r"^no (weights )?file "):
            check_names(["nets.py:Own"], *words)


@pytest.mark.parametrize("name", ["net.onnx", "nett.onnx", "nets.py", "net.pt2"])
def test_a_header_of_a_stranger_names_checkpoints_alone_and_learns_of_no_file(folder, name):
    stored = object.__new__(Adversarials)
    object.__setattr__(stored, "about", SimpleNamespace(model=name, data="digits", others={}))
    with pytest.raises(UserError, match=f"^unknown model '{name}'") as refused:
        named_by(stored)
    assert "Own" not in str(refused.value) and "mean" not in str(refused.value).replace(name, "")


def test_a_header_may_name_a_recipe_where_weights_were_typed(folder):
    stored = object.__new__(Adversarials)
    object.__setattr__(stored, "about", SimpleNamespace(model="digits_mlp", data="digits", others={}))
    with pytest.raises(UserError, match=r"^no weights file 'absent.pt'"):  # the recipe was found
        named_by(stored, weights="absent.pt")


def test_names_that_are_not_alike_are_listed_and_not_suggested(folder):
    assert str(missing("file", "quite_another.npz")) == "no file 'quite_another.npz'; its folder holds 'mine.npz'"
    for number in range(8):
        (folder / f"{number}.npz").touch()
    said = "; its folder holds '0.npz', '1.npz', '2.npz', '3.npz', '4.npz' and 4 more"
    assert str(missing("file", "quite_another.npz")).endswith(said)
    assert str(missing("file", "quite_another.zip")) == "no file 'quite_another.zip'"


def test_a_file_without_a_builder_names_what_it_defines_and_not_what_it_imports(folder):
    with pytest.raises(UserError, match=r"expected nets.py:BUILDER, .*; it defines Own$"):
        load_builder("nets.py")
    with pytest.raises(UserError, match=r"'nets.py' has no 'Owm'; did you mean 'Own'\? known: Own, own$"):
        load_builder("nets.py:Owm")
