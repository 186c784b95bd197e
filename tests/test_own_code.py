"""The digest of one's own code covers the modules next to it, however their folder is written."""

import importlib
import sys

import pytest

from robustbench_rkhs.nodes.own_code import source_digest


@pytest.mark.parametrize("way", ["{folder}", "./code_{way}", "{parent}/./code_{way}", "{parent}//code_{way}"])
def test_a_changed_neighbour_changes_the_digest(tmp_path, monkeypatch, way):
    number = way.count("/") + len(way)
    folder = tmp_path / f"code_{number}"
    folder.mkdir()
    (folder / f"helper_{number}.py").write_text("STEP = 1\n")
    (folder / f"method_{number}.py").write_text(f"import helper_{number}\n\n\nclass Method:\n    step = helper_{number}.STEP\n")
    (tmp_path / f"elsewhere_{number}.py").write_text("ONE = 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "path", [way.format(folder=folder, parent=tmp_path, way=number), *sys.path])
    importlib.import_module(f"elsewhere_{number}")
    method = importlib.import_module(f"method_{number}").Method
    before = source_digest(method)
    (tmp_path / f"elsewhere_{number}.py").write_text("ONE = 2\n")
    assert source_digest(method) == before
    (folder / f"helper_{number}.py").write_text("STEP = 2\n")
    assert source_digest(method) != before
