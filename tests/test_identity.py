"""A finished part is served only while nothing that its contents depend on has changed: no module is forgotten."""

import re
from pathlib import Path

import grimp
import pytest

import robustbench_rkhs
from robustbench_rkhs.evaluation import cache_key
from robustbench_rkhs.evaluation.cache_key import CARRIERS, ELSEWHERE, SOURCES
from robustbench_rkhs.runtime import sources
from robustbench_rkhs.verdicts import provenance

PACKAGE = Path(robustbench_rkhs.__file__).parent
NAME = PACKAGE.name
WORK = ("evaluation",)
"""What makes parts."""


@pytest.fixture(scope="module")
def reached():
    """Every module of the package that making a part imports, imports inside functions too, by its path from the package."""
    graph = grimp.build_graph(NAME)
    todo = [module for module in graph.modules if module.split(".")[1:2] and module.split(".")[1] in WORK]
    seen = set(todo)
    while todo:
        module = todo.pop()
        parents = {module.rsplit(".", count)[0] for count in range(1, module.count("."))}  # importing a.b runs a's __init__
        for found in graph.find_modules_directly_imported_by(module) | parents:
            if found.startswith(f"{NAME}.") and found not in seen:
                seen.add(found)
                todo.append(found)
    return {module.removeprefix(f"{NAME}.").replace(".", "/") for module in seen}


def named(module):
    return any(module == source.removesuffix(".py") or module.startswith(f"{source}/") for source in SOURCES)


def test_every_module_on_the_way_to_a_part_is_digested_or_excused(reached):
    assert {
        "runtime/precision",
        "evaluation/row_cache",
        "attacks/engine",
        "evaluation/counting",
        "verdicts/image_states",
    } <= reached
    assert not sorted(module for module in reached if not named(module) and module.split("/")[0] not in ELSEWHERE)


def test_no_name_is_idle(reached):
    assert all((PACKAGE / source).exists() for source in SOURCES)
    tops = {module.split("/")[0] for module in reached if not named(module)}
    assert tops == set(ELSEWHERE) and not any(re.search(r"cli|report|training", top) for top in tops)


@pytest.mark.parametrize("source", ["runtime/precision.py", "evaluation/row_cache.py", "attacks/engine.py", "verdicts/store.py"])
def test_a_change_of_any_source_changes_the_digest(source, tmp_path, monkeypatch):
    for file in PACKAGE.rglob("*.py"):
        copy = tmp_path / file.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    digest = cache_key.sources_digest.__wrapped__  # past its cache
    own = digest()
    monkeypatch.setattr(cache_key, "__file__", str(tmp_path / "evaluation" / "cache_key.py"))
    same = digest()
    (tmp_path / source).write_text((tmp_path / source).read_text() + "\nCHANGED = 1\n")
    assert own == same != digest()


def test_only_what_carries_jobs_is_left_out_of_the_digest():
    """Of the engines, what sets a worker up is digested: its threads decide how sums are rounded."""
    engines = {file.relative_to(PACKAGE).as_posix() for file in (PACKAGE / "evaluation/engines").glob("*.py")}
    assert engines - set(CARRIERS) == {f"evaluation/engines/{name}.py" for name in ("__init__", "worker")}
    assert set(CARRIERS) < engines
    assert CARRIERS == provenance.CARRIERS  # a table is stale by the same files by which its parts are


def test_a_table_is_stale_by_what_is_digested_and_by_nothing_that_carries_jobs(tmp_path, monkeypatch):
    for file in (PACKAGE / "evaluation").rglob("*.py"):
        copy = tmp_path / file.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    monkeypatch.setattr(sources, "PACKAGE", tmp_path)

    def digest():
        sources.code_digest.cache_clear()
        return provenance.evaluator()["evaluation"]

    own = digest()
    for name, changes in (("evaluation/engines/ranks.py", False), ("evaluation/engines/worker.py", True)):
        (tmp_path / name).write_text((tmp_path / name).read_text() + "\nCHANGED = 1\n")
        assert (digest() != own) is changes
    monkeypatch.undo()
    sources.code_digest.cache_clear()
