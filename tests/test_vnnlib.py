"""Out to others: plain networks and ONNX, the open images as VNN-LIB, and the answers of foreign verifiers."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from robustbench_rkhs import UserError, evaluate, load_model, plain_export
from robustbench_rkhs.layers import BROConv, GroupSort, MaxMin, Normalize, Sandwich
from robustbench_rkhs.verdicts.image_states import Evidence
from robustbench_rkhs.zoo.verbs import enter
from robustbench_rkhs.zoo.vnnlib import property_of, read_answers, write_vnnlib

EPS = (0.02, 0.05, 0.1)
FAST = {"norm": "linf", "diagnostics": False, "attacks": ("pgd",)}
NETWORKS = {
    "Sandwich": lambda: nn.Sequential(nn.Flatten(), Sandwich(32, 8), Sandwich(8, 6), nn.Linear(6, 3)),
    "BROConv": lambda: nn.Sequential(Normalize([0.5, 0.4], [0.2, 0.3]), BROConv(2, 4, 3), MaxMin(), nn.Flatten(), nn.Linear(64, 3)),
    "GroupSort": lambda: nn.Sequential(nn.Flatten(), nn.Linear(32, 8), GroupSort(2), nn.Linear(8, 3)),
    "plain": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_plain_export_has_the_logits_of_the_network_and_no_code_of_this_package(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
    torch.manual_seed(0)
    net = NETWORKS[name]().eval()
    plain = plain_export(net, (2, 4, 4), tmp_path / "net.onnx")
    x = torch.rand(5, 2, 4, 4)
    torch.testing.assert_close(plain(x), net(x), rtol=0, atol=1e-6 * max(1, float(net(x).abs().max())))
    assert all(type(part).__module__.startswith("torch.") or type(part).__module__.startswith("abc") for part in plain.modules())
    if name == "BROConv":  # its circular borders become operations on shapes that onnx2torch can't record
        return
    pytest.importorskip("onnx2torch", reason="the extra [onnx] is not installed")
    torch.testing.assert_close(load_model(str(tmp_path / "net.onnx")).model(x), net(x), rtol=0, atol=1e-5)


def test_what_can_not_be_exported_is_one_line() -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1) if x.sum() > 0 else x.flatten(1) + 1

    with pytest.raises(UserError, match="the model can't be exported") as refused:
        plain_export(Branching(), (1, 2, 2))
    assert str(refused.value).isprintable()


def test_a_property_asks_for_another_class_in_the_ball_rounded_outwards() -> None:
    x = np.array([[[0.0, 0.3, 1.0]]])
    text = property_of(x, 1, 3, 0.1, True)
    least = [float(one) for one in re.findall(r"\(assert \(>= X_\d+ ([\d.-]+)\)\)", text)]
    most = [float(one) for one in re.findall(r"\(assert \(<= X_\d+ ([\d.-]+)\)\)", text)]
    assert least[0] == 0 and most[2] == 1 and least[1] < 0.3 - 0.1 + 1e-12 and most[0] >= 0.1 and not re.search(r"\de-", text)
    assert "(assert (or (and (>= Y_0 Y_1)) (and (>= Y_2 Y_1))))" in text and "Y_1 Y_1" not in text
    free = property_of(x, 0, 2, 0.1, False)
    assert "(>= X_0 -0.1" in free and free.count("declare-const Y") == 2


def _read(text: str):
    """The nested lists of an s-expression."""
    stack: list = [[]]
    for token in re.findall(r"[()]|[^\s()]+", re.sub(r";.*", "", text)):
        if token == "(":
            stack.append([])
        elif token == ")":
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(token)
    assert len(stack) == 1
    return stack[0]


def _holds(expression, values: dict[str, float]) -> bool:
    head, *rest = expression
    if head in ("and", "or"):
        return (all if head == "and" else any)(_holds(one, values) for one in rest)
    left, right = (values[one] if one in values else float(one) for one in rest)
    return left >= right if head == ">=" else left <= right


@pytest.mark.parametrize("unit", [True, False])
def test_a_property_read_back_holds_at_adversarial_images_and_nowhere_else(unit: bool) -> None:
    """Our own reader of the format: declarations first, and assertions that say what the ball and the classes say."""
    rng = np.random.default_rng(0)
    x, eps, label = rng.uniform(size=(1, 2, 3)), 0.1, 2
    statements = _read(property_of(x, label, 4, eps, unit))
    declared = [one[1] for one in statements if one[0] == "declare-const"]
    asserted = [one[1] for one in statements if one[0] == "assert"]
    assert declared == [f"X_{i}" for i in range(6)] + [f"Y_{j}" for j in range(4)] and len(declared + asserted) == len(statements)
    for _ in range(300):
        image, logits = x.flatten() + rng.uniform(-0.13, 0.13, size=6) * rng.choice([0.5, 1.0]), rng.normal(size=4)
        values = {f"X_{i}": one for i, one in enumerate(image)} | {f"Y_{j}": one for j, one in enumerate(logits)}
        inside = bool((np.abs(image - x.flatten()) <= eps).all() and (not unit or ((image >= 0) & (image <= 1)).all()))
        assert all(_holds(one, values) for one in asserted) == (inside and logits.argmax() != label)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory):
    pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3)).eval()
    x = torch.rand(30, 1, 4, 4)
    done = evaluate(net, (x, net(x).argmax(1)), name="net", eps=EPS, certificates=("ibp",), **FAST)
    split, folder = enter(net, (x, net(x).argmax(1))).split, tmp_path_factory.mktemp("out")
    instances = write_vnnlib(net, split, done, folder)
    return net, split, done, folder, instances


def test_each_open_image_is_a_file_and_the_instances_are_listed(found) -> None:
    _, _, done, folder, instances = found
    rows = list(csv.reader(instances.open()))
    wanted = {
        f"net-{index}-eps-{number}.vnnlib"
        for number, eps in enumerate(done.about.epsilons)
        for index, state in Evidence.of(done).states(eps)["state"].items()
        if state in ("survived", "untested")
    }
    assert wanted and {row[1] for row in rows} == wanted == {path.name for path in folder.glob("*.vnnlib")}
    assert {row[0] for row in rows} == {"net.onnx"} and (folder / "net.onnx").is_file()


def test_foreign_answers_are_counted_beside_the_verdicts_and_contradictions_are_named(found, tmp_path: Path) -> None:
    _, _, done, folder, instances = found
    rows = list(csv.reader(instances.open()))
    before = done.table.copy()
    answers = tmp_path / "theirs.csv"
    words = ["unsat", "sat", "timeout"]
    with answers.open("w", newline="") as handle:
        csv.writer(handle).writerows(
            [["category", "net", "prop", "result"], *(["x", *row[:2], words[n % 3]] for n, row in enumerate(rows))]
        )
    read = read_answers(answers, done, folder)
    assert read.contradictions == 0 and all("not counted as verdicts" in line for line in read.lines)
    total = [
        sum(int(one) for one in re.findall(rf"(\d+) {word}", " ".join(read.lines))) for word in ("proved", "broken", "undecided")
    ]
    assert sum(total) == len(rows) and total[0] == len(rows[0::3]) and done.table.equals(before)
    assert sum("," in line for line in (folder / "theirs-foreign.csv").read_text().splitlines()) == len(rows) + 1
    later = evaluate(*_again(found), name="net", eps=EPS, certificates=("crown",), **FAST)
    known = Evidence.of(later)
    certified = {
        f"net-{index}-eps-{number}.vnnlib"
        for number, eps in enumerate(later.about.epsilons)
        for index, state in known.states(eps)["state"].items()
        if state == "certified"
    }
    mine = [row[1] for row in rows if row[1] in certified]
    assert mine
    answers.write_text("".join(f"net.onnx,{name},sat\n" for name in mine))
    contradicted = read_answers(answers, later, folder)
    assert contradicted.contradictions == len(mine) and "CONTRADICTION: image" in contradicted.lines[-1]


def _again(found):
    net, split, *_ = found
    return net, (split.x[:], split.y)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a,b\nnet.onnx,net-0-eps-0.vnnlib,perhaps\n", "line 2: expected a .vnnlib and one of"),
        ("net.onnx,NAME,sat\nnet.onnx,NAME,unsat\n", "two answers, sat and unsat"),
        (f"net.onnx,{'x' * 200_000},sat\n", "cannot be read: Error: field larger than field limit"),
    ],
)
def test_a_csv_that_says_nothing_or_two_things_is_refused(text: str, line: str, found, tmp_path: Path) -> None:
    *_, done, folder, instances = found
    name = next(csv.reader(instances.open()))[1]
    (tmp_path / "a.csv").write_text(text.replace("NAME", name))
    with pytest.raises(UserError, match=line):
        read_answers(tmp_path / "a.csv", done, folder)


def test_l2_is_no_box() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    x = torch.rand(2, 1, 2, 2)
    done = evaluate(net, (x, net(x).argmax(1)), eps=0.1, **(FAST | {"norm": "l2", "certificates": ("margin",)}))
    with pytest.raises(UserError, match="no squares of pixels, so it takes --norm linf, found l2"):
        write_vnnlib(net, enter(net, (x, net(x).argmax(1))).split, done, Path("nowhere"))
