"""What a cache of briefs knows of a folder, and what it takes along to another process; boards with and without records."""

import pickle
import shutil

import pytest
from test_places import stored

from robustbench_rkhs.reports import paired_tests
from robustbench_rkhs.runtime import seals
from robustbench_rkhs.site import build_site
from robustbench_rkhs.verdicts import BriefCache, brief_cache, brief_index


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        stored(tmp_path, f"m{number}", str(number), key=f"{number}" * 64, seed=number)
    return tmp_path


@pytest.fixture(params=[1, 20])
def many(request, monkeypatch):
    """Whether an index is kept."""
    monkeypatch.setattr(brief_cache, "MANY", request.param)


def test_it_knows_how_many_tables_are_to_be_summed_up(folder, many, monkeypatch):
    cache = BriefCache(folder / "briefs")
    assert cache.unknown(folder / "verdicts") == 3 and BriefCache().unknown(folder / "verdicts") == 3
    before = cache.read_all(folder / "verdicts", pytest.fail)
    assert BriefCache(folder / "briefs").unknown(folder / "verdicts") == 0
    monkeypatch.setattr(brief_cache, "code_digest", lambda: "after an upgrade")
    fresh = BriefCache(folder / "briefs")
    assert fresh.unknown(folder / "verdicts") == 3
    after = fresh.read_all(folder / "verdicts", pytest.fail)
    assert [one.content for one in after] == [one.content for one in before]


def test_an_index_is_not_written_for_few_changes_and_what_is_read_is_right(folder, monkeypatch):
    for name, value in (("SETTLED", 0.0), ("FEW", 2)):
        monkeypatch.setattr(brief_index, name, value)
    monkeypatch.setattr(brief_cache, "MANY", 1)
    BriefCache(folder / "briefs").read_all(folder / "verdicts", pytest.fail)
    (record,) = (folder / "briefs").glob("index-*.json")
    before = record.read_bytes()
    stored(folder, "m1", "1", key="1" * 64, seed=9)
    for _ in range(2):
        brief_cache.HELD.clear()
        found = BriefCache(folder / "briefs").read_all(folder / "verdicts", pytest.fail)
        plain = BriefCache().read_all(folder / "verdicts", pytest.fail)
        assert [one.content for one in found] == [one.content for one in plain] and record.read_bytes() == before
    for number in range(3):
        stored(folder, f"m{number}", str(number), key=f"{number}" * 64, seed=20 + number)
    stored(folder, "m3", "3", key="3" * 64)
    BriefCache(folder / "briefs").read_all(folder / "verdicts", pytest.fail)
    assert record.read_bytes() != before


def test_another_process_gets_the_folder_alone(folder, many):
    cache = BriefCache(folder / "briefs")
    cache.read_all(folder / "verdicts", pytest.fail)
    cache.unknown(folder / "verdicts")
    text = pickle.dumps(cache)
    assert len(text) < 500
    there = pickle.loads(text)
    assert there.folder == cache.folder and len(there.read_all(folder / "verdicts", pytest.fail)) == 3


@pytest.mark.parametrize("runs", [[[]], [[5]], "a", [[0, 5, 7]]])
def test_a_record_of_another_form_is_made_again(folder, runs):
    cache = BriefCache(folder / "briefs")
    before = cache.read_all(folder / "verdicts", pytest.fail)
    for path in (folder / "briefs").glob("*.json"):
        seals.write_record(path, seals.read_record(path) | {"index": runs})
    brief_cache.HELD.clear()
    after = BriefCache(folder / "briefs").read_all(folder / "verdicts", pytest.fail)
    assert [one.digest for one in after] == [one.digest for one in before]


def test_boards_with_records_are_those_without(folder, monkeypatch, tmp_path_factory):
    plain = tmp_path_factory.mktemp("plain")
    shutil.copytree(folder / "verdicts", plain / "verdicts")
    build_site(plain, plain / "site")
    monkeypatch.setattr(paired_tests, "MANY", 2)
    build_site(folder, folder / "site")
    assert list(folder.rglob("pairs-*.npz")) and not list(plain.rglob("pairs-*.npz"))
    for out in (plain, folder):
        stored(out, "m1", "9", key="9" * 64, seed=9)
        build_site(out, out / "site")
    boards = sorted(path.name for path in (plain / "site" / "boards").iterdir())
    assert boards == sorted(path.name for path in (folder / "site" / "boards").iterdir())
    for name in boards:
        assert (plain / "site" / "boards" / name).read_bytes() == (folder / "site" / "boards" / name).read_bytes()


@pytest.mark.parametrize("few", [0, 1, 4])
def test_pages_of_tables_that_stayed_in_memory_are_those_of_tables_that_were_read_again(folder, monkeypatch, few, tmp_path_factory):
    """One of 100 images among them, pooled with another of its function."""
    stored(folder, "more", "7", key="7" * 64, images=100)
    stored(folder, "more", "8", key="7" * 64, images=80, seed=5)
    monkeypatch.setattr("robustbench_rkhs.site.build.FEW", few)
    build_site(folder, folder / "site")
    fresh = tmp_path_factory.mktemp("fresh") / folder.name
    shutil.copytree(folder / "verdicts", fresh / "verdicts")
    monkeypatch.setattr("robustbench_rkhs.site.build.FEW", 0)
    build_site(fresh, fresh / "site")
    names = [path.relative_to(fresh / "site") for path in (fresh / "site").rglob("*.html")]
    assert len(names) > 5 and all((folder / "site" / one).read_bytes() == (fresh / "site" / one).read_bytes() for one in names)
    (data,) = (folder / "site/data").glob("more*.js")
    assert data.read_bytes() == (fresh / "site/data" / data.name).read_bytes()
