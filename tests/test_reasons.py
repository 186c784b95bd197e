"""Foreign error messages are quoted by their first line that says anything, whole and without escape codes."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from robustbench_rkhs.evaluation.predictions import ask, classes_of
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import cause, reason
from robustbench_rkhs.training.recipe import TrainRecipe
from robustbench_rkhs.zoo.weights import read_weights

LONG = "the layer wanted " + "a very particular shape, " * 20 + "and the end of the line"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("plain", "plain"),
        ("\n\n  first\nsecond", "first"),
        (LONG + "\nmore", LONG),
        ("\x1b[31m\x1b[1mred\x1b[0m words\nmore", "red words"),
        ("\x1b]8;;http://x\x07link\x1b]8;;\x07", "link"),
        ("\x1b[2K\r\n\x1b[0m\nafter an empty coloured line", "after an empty coloured line"),
        ("a\tb\x00c", "a bc"),
        ("", "RuntimeError"),
        (" \n\x1b[0m\n", "RuntimeError"),
    ],
)
def test_the_reason_is_the_first_line_that_says_anything(message: str, expected: str) -> None:
    assert reason(RuntimeError(message)) == expected


def test_an_error_of_the_system_is_quoted_without_its_number_and_path(tmp_path: Path) -> None:
    with pytest.raises(OSError) as absent:
        (tmp_path / "absent").read_text()
    assert reason(absent.value) == "no such file or directory"
    assert cause(absent.value) == f"FileNotFoundError: no such file or directory: '{tmp_path / 'absent'}'"
    assert reason(OSError("cannot identify image")) == "cannot identify image" and reason(OSError(5, "I/O error")) == "I/O error"


def test_an_error_in_json_is_its_place_and_what_it_is() -> None:
    with pytest.raises(json.JSONDecodeError) as found:
        json.loads("{}\n x")
    assert reason(found.value) == "line 2, column 2: extra data"


def test_the_cause_names_the_kind() -> None:
    assert cause(KeyError("fc")) == "KeyError: 'fc'"
    assert cause(RuntimeError()) == "RuntimeError"


def test_yaml_is_quoted_by_its_problem_and_line() -> None:
    with pytest.raises(yaml.YAMLError) as raised:
        yaml.safe_load("a: 1\nb: [1, 2\nc: 3")
    assert reason(raised.value) == "line 3: expected ',' or ']', but got ':'"


class Raises(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(f"\n\x1b[31m{LONG}\x1b[0m\n  stack of something")


@pytest.mark.parametrize("call", [lambda: classes_of(Raises(), torch.zeros(1, 3)), lambda: ask(Raises(), torch.zeros(1, 3), 2)])
def test_a_model_that_raises_is_quoted_whole(call) -> None:
    with pytest.raises(UserError) as raised:
        call()
    assert str(raised.value).endswith(LONG)
    assert str(raised.value).isprintable()


def test_files_that_cannot_be_read_are_quoted_in_one_line(tmp_path: Path) -> None:
    for name, read in (
        ("a.safetensors", lambda path: read_weights(str(path))),
        ("a.pth", lambda path: read_weights(str(path))),
        ("a.yaml", TrainRecipe.read),
    ):
        (tmp_path / name).write_text("a: [1,\n: }")
        with pytest.raises(UserError) as raised:
            read(tmp_path / name)
        assert str(raised.value).isprintable()


def test_no_foreign_message_is_cut() -> None:
    """Nobody cuts a message by hand: a cut sentence hides what is wrong."""
    cut = re.compile(r"str\((error|refused|raised|fault)\)(\.split\(\)|\.splitlines\(\)|\[:)")
    root = Path(__file__).parent.parent / "robustbench_rkhs"
    found = {str(path.relative_to(root)) for path in root.rglob("*.py") if cut.search(path.read_text())}
    assert found <= {"verdicts/schema.py", "verifier/operations.py"}  # pandera prints a whole schema; the verifier stands alone
