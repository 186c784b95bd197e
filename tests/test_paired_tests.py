"""The paired tests of a board: with a record they are those without, whatever changed and whatever the record holds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_places import stored

from robustbench_rkhs.reports import paired_tests
from robustbench_rkhs.reports.paired_tests import PairedTests
from robustbench_rkhs.site import build_site
from robustbench_rkhs.verdicts import mcnemar, mcnemar_all, mcnemar_between, statistics

IMAGES = 40


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(paired_tests, "MANY", 2)


def answers(who, whole=True):
    """What models of these names say: the same for the same name."""
    rows = [np.random.default_rng(list(one.encode())) for one in who]
    right = np.array([row.random(IMAGES) < 0.6 for row in rows])
    answered = np.ones_like(right) if whole else np.array([row.random(IMAGES) < 0.8 for row in rows])
    return right & answered, answered


def found(who, record, whole=True):
    one = PairedTests.of(who, *answers(who, whole), record)
    return one.tests, one.shared


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@given(st.booleans(), st.integers(1, 4))
def test_between_some_models_and_all_as_between_all(whole, count):
    right, answered = answers("abcdef", whole)
    tests, shared = mcnemar_all(right, answered)
    assert same(mcnemar_between(right[:count], answered[:count], right, answered), (tests[:count], shared[:count]))
    both = answered[0] & answered[1]
    assert tests[0, 1] == pytest.approx(mcnemar(right[0][both], right[1][both])) and shared[0, 1] == both.sum()


@pytest.mark.parametrize("few", [1, 200])
@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("then", ["abcdef", "abXdef", "fedcba", "abdefX", "bcf", "XYZUVW", "aXYZUV"])
def test_a_record_changes_no_test(tmp_path, monkeypatch, then, whole, few):
    monkeypatch.setattr(paired_tests, "FEW", few)  # 1: of so few models a record is hardly ever written again
    monkeypatch.setattr(statistics, "BLOCK", 4)
    record = tmp_path / "pairs.npz"
    for who in ("abcdef", then, then):
        assert same(found(who, record, whole), found(who, None, whole))


def test_only_new_models_are_tested(tmp_path, monkeypatch):
    record, asked = tmp_path / "pairs.npz", []
    found("abcdef", record)
    monkeypatch.setattr(paired_tests, "mcnemar_all", None)
    monkeypatch.setattr(paired_tests, "mcnemar_between", lambda *given: asked.append(len(given[0])) or mcnemar_between(*given))
    found("abXdef", record)
    found("abXdef", record)
    assert asked == [1, 0]


def test_whatever_byte_of_a_record_is_damaged_it_is_what_was_written_or_made_again(tmp_path):
    record = tmp_path / "pairs.npz"
    expected, whole = found("abcdef", record), record.read_bytes()
    for place in range(len(whole)):
        record.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        known = PairedTests._read(record)
        assert known is None or (same((known.tests, known.shared), expected) and known.who == tuple("abcdef"))
    record.write_bytes(whole[:100])
    assert same(found("abcdef", record), expected) and record.read_bytes() == whole


FOREIGN = {
    "a plain array": lambda handle: np.save(handle, np.zeros(3)),
    "one name": lambda handle: np.savez(handle, who=np.array("a"), tests=np.array(1.0), shared=np.array(1), sha256=np.array("x")),
    "numbers": lambda handle: np.savez(handle, who=np.array([1]), tests=np.ones((1, 1)), shared=np.ones((1, 1), int), sha256="x"),
    "other names": lambda handle: np.savez(handle, a=np.zeros(3)),
    "text": lambda handle: handle.write(b"no archive"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_another_file_in_the_place_of_a_record_is_replaced(tmp_path, name):
    record = tmp_path / "pairs.npz"
    with record.open("wb") as handle:
        FOREIGN[name](handle)
    assert same(found("abcdef", record), found("abcdef", None)) and PairedTests._read(record) is not None


def test_a_record_of_other_code_or_another_form_is_made_again(tmp_path, monkeypatch):
    record = tmp_path / "pairs.npz"
    np.savez(record.open("wb"), who=np.array(["a"]), tests=np.zeros(3), shared=np.zeros((1, 1)), sha256=np.array("x"))
    assert same(found("abc", record), found("abc", None))
    with monkeypatch.context() as patched:
        patched.setattr(paired_tests, "code_digest", lambda: "another")
        assert PairedTests._read(record) is None
    assert PairedTests._read(record) is not None


def test_few_models_have_no_record(tmp_path, monkeypatch):
    monkeypatch.setattr(paired_tests, "MANY", 4)
    found("abc", tmp_path / "pairs.npz")
    assert not any(tmp_path.iterdir())


def test_records_of_boards_that_are_gone_or_became_small_are_removed(tmp_path):
    """As the pages of models that are gone; what is no record of a board, or of one that is there, stays."""
    tables = [stored(tmp_path, name, digit, key=digit * 64) for name, digit in (("a", "1"), ("b", "2"))]
    stored(tmp_path, "c", "3", key="3" * 64, epsilons=(0.5,))
    records, others = tmp_path / "local" / "briefs", lambda: {path.name for path in records.iterdir() if "pairs-" not in path.name}
    build_site(tmp_path, tmp_path / "site")
    named = lambda: sorted(path.name for path in records.glob("pairs-*"))  # noqa: E731
    assert named() == [f"pairs-digits-l2-eps{eps}.npz" for eps in ("0.25", "0.5", "1")]
    before = others()
    tables[0].path.unlink()
    build_site(tmp_path, tmp_path / "site")
    assert named() == ["pairs-digits-l2-eps0.5.npz"]  # one model is left on the boards of 0.25 and 1
    assert before <= others()
    for path in sorted((tmp_path / "verdicts").rglob("*.parquet")):
        path.unlink()
    build_site(tmp_path, tmp_path / "site")
    assert named() == [] and not list((tmp_path / "site" / "boards").iterdir())
