"""Claims of other boards stand apart from what is measured; our rows in the forms of RobustBench and of the Hugging Face Hub."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from test_cli import rkhs

from robustbench_rkhs import site, verdicts
from robustbench_rkhs.attacks import DDN
from robustbench_rkhs.evaluation.recipe import EvalRecipe
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.paths import checkpoints_folder
from robustbench_rkhs.reports import write_leaderboard
from robustbench_rkhs.reports.claimed import claims_of, import_claims, read_claim, read_claims
from robustbench_rkhs.reports.entries import board
from robustbench_rkhs.site.board_files import write_board
from robustbench_rkhs.site.boards import boards
from robustbench_rkhs.site.exported import HUB, eval_results, export
from robustbench_rkhs.site.publication import publish
from robustbench_rkhs.training import checkpoint
from robustbench_rkhs.verdicts.store import table_paths

ENTRY = {
    **{"link": "https://example.org/paper", "name": "A paper", "authors": "A, B", "additional_data": False, "dataset": "cifar10"},
    **{"number_forward_passes": 1, "venue": "Conf 2023", "architecture": "WRN-28-10", "eps": "0.25", "clean_acc": "93.25"},
    **{"reported": "70.7", "autoattack_acc": "69.5", "footnote": "with images", "unreliable": False},
}
"""With the fields and types of RobustBench's files."""


def filed(folder, norm="L2", name="Other2023", **fields):
    path = folder / "cifar10" / norm / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(ENTRY | fields))
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """An evaluation, as if its images were CIFAR-10's, at two radii."""
    folder = tmp_path_factory.mktemp("home")
    loaded = checkpoint.load(checkpoints_folder() / "digits_mlp")
    recipe = EvalRecipe(eps=("0.25", "0.5"), attacks=(DDN(steps=3),), certificates=("margin",), samples=8, diagnostics=False)
    evaluate(loaded.model, loaded.recipe.data.test(), recipe, name="digits_mlp", folder=folder / "reports/verdicts")
    (path,) = table_paths(folder / "reports/verdicts")
    found = verdicts.read(path)
    verdicts.write(verdicts.Evaluation(found.table.assign(data="cifar10"), found.about.but(data="cifar10")), path)
    return folder


def test_an_entry_of_robustbench_is_read(tmp_path):
    found = read_claim(filed(tmp_path))
    assert (found.model, found.dataset, found.norm, found.eps, found.clean_acc) == ("Other2023", "cifar10", "l2", 0.25, 0.9325)
    assert (found.autoattack_acc, found.reported, found.row["extra"]) == (0.695, 70.7 / 100, "no")
    assert read_claim(filed(tmp_path, "Linf", eps="8/255")).eps == 8 / 255
    odd = read_claim(filed(tmp_path, link="javascript:alert(1)", venue=None, additional_data="?", reported="-", more=[1]))
    assert (odd.link, odd.venue, odd.additional_data, odd.reported) == ("", "", None, None)


WRONG = {
    "no claim": ({"autoattack_acc": None, "reported": "-"}, "claims no robust accuracy"),
    "above 100": ({"clean_acc": "930"}, "expected a percentage from 0 to 100"),
    "no number": ({"autoattack_acc": "many"}, "expected a percentage, found 'many'"),
    "a radius of words": ({"eps": "big"}, "eps"),
    "a path": ({"dataset": "../x"}, "data set '../x'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_claim_is_one_line(tmp_path, name):
    fields, line = WRONG[name]
    filed(tmp_path, **fields)
    unread = []
    assert read_claims(tmp_path, unread.append) == [] and len(unread) == 1 and line in unread[0] and "\n" not in unread[0]


def test_other_threat_models_and_files_are_left_out(tmp_path):
    filed(tmp_path, "corruptions")
    (tmp_path / "cifar10/L2").mkdir()
    (tmp_path / "cifar10/L2/bad.json").write_text("[" * 100 + "]" * 100)
    unread = []
    assert read_claims(tmp_path, unread.append) == [] and "found 'corruptions'" in unread[1] and "deep" in unread[0]
    with pytest.raises(UserError, match="holds no entry"):
        import_claims(tmp_path, tmp_path / "out", unread.append)


def test_claims_stand_apart_on_the_leaderboard_and_on_the_site(home, tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    filed(tmp_path / "given", venue="<b>x|y</b>")
    filed(tmp_path / "given", name="Stronger", autoattack_acc="99")
    filed(tmp_path / "given", name="Elsewhere", eps="0.4")
    out, _ = rkhs("report", "--claims", tmp_path / "given", "--out", tmp_path / "out", folder=tmp_path)
    assert "claims: 3 in" in out
    claims = read_claims(tmp_path / "out/claims", pytest.fail)
    assert [one.autoattack_acc for one in claims_of(claims, ("cifar10", "", "l2", "unit", 0.25))] == [0.99, 0.695]
    others = ("cifar10", "", "linf", "unit", 0.25), ("cifar10", "", "l2", "none", 0.25)
    assert not any(claims_of(claims, section) for section in others)
    own = verdicts.read_all(home / "reports/verdicts")
    md, csv = write_leaderboard(own, tmp_path / "board", claims=claims)
    section, rest = md.read_text().split("### Claimed elsewhere")[:2]
    assert "Stronger" not in section and "Not measured here" in rest and "<b>" not in rest and "Elsewhere" not in rest
    assert set(pd.read_csv(csv)["model"]) == {"digits_mlp"}
    plain, _ = write_leaderboard(own, tmp_path / "plain")
    assert "Claimed" not in plain.read_text()
    one, other = boards(board(own), {}, {}, claims)
    assert [row["model"] for row in one.claimed] == ["Stronger", "Other2023"] and other.claimed == ()
    assert all(row["model"] == "digits_mlp" for row in (*one.rows, *one.apart))
    page, _, stated = write_board(one, tmp_path / "site/boards/one")
    publish(tmp_path / "site", [page])
    text = page.read_text()
    assert "Claimed elsewhere, not measured here" in text and "<b>x" not in text and 'href="https://example.org/paper"' in text
    found = json.loads(stated.read_text())
    schema = json.loads((Path(site.__file__).parent / "static/board.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(found)
    assert len(found["claimed"]) == 2
    found["claimed"][0]["rank"] = 1
    assert not jsonschema.Draft202012Validator(schema).is_valid(found)


def test_our_rows_in_the_form_of_robustbench_are_read_as_claims_again(home, tmp_path):
    unread = []
    written = export(home / "reports", tmp_path, unread)
    infos = sorted(path for path in written if path.suffix == ".json")
    names = [path.relative_to(tmp_path).as_posix() for path in infos]
    assert names == [f"model_info/cifar10/L2/digits_mlp_eps{eps}.json" for eps in ("0.25", "0.5")] and not unread
    stored = json.loads(infos[0].read_text())
    assert set(ENTRY) <= set(stored) and stored["autoattack_acc"] is None and stored["attacks"] == ["ddn"]
    row = verdicts.summary(verdicts.read_all(home / "reports/verdicts")[0]).iloc[0]
    found = read_claim(infos[0])
    assert found.eps == 0.25 and found.reported == pytest.approx(row["robust"], abs=5e-5)
    assert stored["certified_acc"] == f"{100 * row['certified']:.2f}" and stored["unreliable"] is True  # undiagnosed


def test_our_rows_as_eval_results_of_the_hub(home, tmp_path):
    written = [path for path in export(home / "reports", tmp_path, []) if path.suffix == ".yaml"]
    assert {path.parent.name for path in written} == {".eval_results"} and len(written) == 2
    entries = yaml.safe_load(sorted(written)[0].read_text())
    assert [one["dataset"]["task_id"] for one in entries] == [
        "clean_accuracy",
        "robust_accuracy_l2_0.25",
        "certified_accuracy_l2_0.25",
    ]
    assert all(
        one["dataset"]["id"] == "uoft-cs/cifar10" and 0 <= one["value"] <= 100 and "8 images" in one["notes"] for one in entries
    )


def test_the_hubs_own_types_write_the_same(home):
    hub = pytest.importorskip("huggingface_hub")
    if not hasattr(hub, "EvalResultEntry"):
        pytest.skip("this version of huggingface_hub has no EvalResultEntry")
    one, _ = boards(board(verdicts.read_all(home / "reports/verdicts")), {}, {})
    found = eval_results(one, one.rows[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(__import__("sys").modules, "huggingface_hub", None)
        assert eval_results(one, one.rows[0]) == found


def test_the_hub_reads_what_is_written(home, tmp_path):
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed (the extra `hub`)")
    types = pytest.importorskip("huggingface_hub._eval_results", reason="this version has no types for .eval_results")
    for path in (path for path in export(home / "reports", tmp_path, []) if path.suffix == ".yaml"):
        stored = yaml.safe_load(path.read_text())
        entries = types.parse_eval_result_entries(stored)
        assert hub.eval_result_entries_to_yaml(entries) == stored and len(entries) == 3  # nothing was left out by the reader
        for entry in entries:
            hub.utils.validate_repo_id(entry.dataset_id)
            assert all(isinstance(text, str) for text in (entry.task_id, entry.date, entry.notes))
            assert type(entry.value) is float and entry.dataset_id.count("/") == 1
    for name in HUB.values():
        hub.utils.validate_repo_id(name)


def test_the_command_exports_and_says_what_has_no_place(home, tmp_path):
    out, err = rkhs("report", "--export", tmp_path / "theirs", folder=home)
    assert "export: " in out and not err
    _, err = rkhs("report", "--export", "x", "--claims", "y", folder=home, code=2)
    assert "--claims and --export do one thing" in err
