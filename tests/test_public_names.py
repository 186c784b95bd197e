"""Public names: each is what it says in any import order, and none is the name of a module."""

import ast
import configparser
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import robustbench_rkhs

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "robustbench_rkhs"
SUBMODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path.name != "__main__.py" and "_shipped" not in path.parts
)
PACKAGES = sorted(path.parent for path in PACKAGE.rglob("__init__.py") if "_shipped" not in path.parts)

REPORT = """
import importlib, json, sys
import robustbench_rkhs as package

def told():
    "Of each public name: its type, its own name, whether its module holds the same object."
    said = {}
    for name in package.__all__:
        value = getattr(package, name)
        home = importlib.import_module(package.VERBS[name])
        said[name] = [type(value).__name__, getattr(value, "__name__", None), getattr(home, name) is value]
    return said

def imported(names):
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            assert not str(error.name).startswith("robustbench_rkhs"), error  # a package of an extra that is not installed

def hidden():
    "Modules that another value hides: `import a.b` followed by `a.b` must give the module."
    modules = {name: module for name, module in sys.modules.items() if name.startswith("robustbench_rkhs.")}
    parents = {name: sys.modules[name.rpartition(".")[0]] for name in modules}
    return [name for name, module in modules.items() if getattr(parents[name], name.rpartition(".")[2], None) is not module]
"""
NAMES_FIRST = REPORT + "first = told(); imported(sys.argv[1:]); print(json.dumps([first, told(), hidden()]))"
SUBMODULES_FIRST = REPORT + "imported(sys.argv[1:][::-1]); first = told(); print(json.dumps([first, told(), hidden()]))"


@pytest.mark.parametrize("code", [NAMES_FIRST, SUBMODULES_FIRST], ids=["names_first", "submodules_first"])
def test_every_public_name_is_what_it_says_in_any_import_order(code):
    done = subprocess.run([sys.executable, "-c", code, *SUBMODULES], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not done.stdout.count("\n") > 1, f"importing prints: {done.stdout[:500]}"
    before, after, hidden = json.loads(done.stdout)
    for name in robustbench_rkhs.__all__:
        assert before[name] == after[name]
        kind, own, at_home = before[name]
        assert kind != "module" and at_home and own == name, f"{name} is a {kind} named {own}"
    assert not hidden


def names_bound(package: Path) -> set[str]:
    """What a package's `__init__` binds: by import, assignment, def, class, and the keys and strings of VERBS and `__all__`."""
    bound = set()
    for node in ast.parse((package / "__init__.py").read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            own = ".".join(package.relative_to(ROOT).parts)
            bound |= {alias.asname or alias.name for alias in node.names if node.module != own}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = {one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)}
            bound |= names
            if node.value is not None and names & {"VERBS", "__all__"}:
                bound |= {one.value for one in ast.walk(node.value) if isinstance(one, ast.Constant) and isinstance(one.value, str)}
    return bound


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_package_exports_a_name_of_one_of_its_modules(package):
    assert not names_bound(package) & {found.name for found in pkgutil.iter_modules([str(package)])}


def test_the_check_of_names_sees_a_clash(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    package = tmp_path / "room"
    package.mkdir()
    for text in ("from room.other import train", "def train(): ...", "VERBS = {'train': 'room.other'}", "train = 3"):
        (package / "__init__.py").write_text(text + "\n")
        assert "train" in names_bound(package)
    (package / "__init__.py").write_text("from room import train\n")
    assert "train" not in names_bound(package)


def test_dir_star_and_version():
    names = {}
    exec("from robustbench_rkhs import *", names)
    assert set(robustbench_rkhs.__all__) <= names.keys()
    assert set(robustbench_rkhs.__all__) <= set(dir(robustbench_rkhs))
    stated = configparser.ConfigParser()
    stated.read(ROOT / "setup.cfg")
    assert robustbench_rkhs.__version__ == stated["metadata"]["version"]
    with pytest.raises(AttributeError, match="no_such_name"):
        robustbench_rkhs.no_such_name  # noqa: B018


def test_a_fresh_import_is_light():
    code = "import sys, robustbench_rkhs; print(sorted({'torch', 'pandas', 'matplotlib', 'foolbox'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout.strip() == "[]"
