"""What is installed: the wheel with its recipes and checkpoints, extras that may be missing, and the files about the project."""

import configparser
import json
import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
import torch
import yaml
from test_cli import rkhs

from robustbench_rkhs.attacks.foolbox import FoolboxAttack
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.shipped import RECIPES
from robustbench_rkhs.runtime.extras import require

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (
    "docs/glossary.md",
    "docs/trust.md",
    "robustbench_rkhs",
    "models",
    "checkpoints",
    "setup.py",
    "setup.cfg",
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
)
SMALL = 1_000_000
"""Bytes of the largest weights that a wheel carries."""


def setup_cfg() -> configparser.ConfigParser:
    stated = configparser.ConfigParser()
    stated.read(ROOT / "setup.cfg")
    return stated


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel, built without network from a copy of the sources, and unpacked."""
    pytest.importorskip("setuptools", minversion="68", reason="building a wheel needs setuptools 68")
    source, unpacked = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("unpacked")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "mine", "resume.pt", "*.part")
            shutil.copytree(ROOT / name, source / name, ignore=ignore)
        else:
            (source / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    (source / "checkpoints" / "digits_mlp" / "resume.pt").write_bytes(b"an unfinished training")
    code = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (built,) = (source / "dist").glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(unpacked)
    return unpacked


def test_the_names_of_the_recipes_that_come_with_the_package_are_known():
    listed = subprocess.run(["git", "ls-files", "models/*.yaml"], cwd=ROOT, capture_output=True, text=True)
    found = {Path(line).stem for line in listed.stdout.splitlines() if line.count("/") == 1}
    if not found:
        pytest.skip("git does not know this folder")
    assert found == RECIPES, "robustbench_rkhs/nodes/shipped.py"


COMMANDS = """
import json, sys
for command, *words in json.loads(sys.argv[1]):
    sys.argv = [f"rkhs-{command}", *words]
    try:
        __import__(f"robustbench_rkhs.cli.{command}", fromlist=["main"]).main()
    except SystemExit as left:
        print("EXIT", left.code or 0, flush=True)
"""


def from_wheel(wheel, folder, *commands):
    """Commands of the unpacked wheel, run in an empty folder, all in one process: their exit codes, output and errors."""
    words = [sys.executable, "-c", COMMANDS, json.dumps(commands)]
    done = subprocess.run(words, cwd=folder, env={"PYTHONPATH": str(wheel)}, capture_output=True, text=True)
    codes = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("EXIT ")]
    assert done.returncode == 0, done.stderr[-2000:]
    return codes, done.stdout, done.stderr


def test_the_wheel_holds_the_recipes_the_small_checkpoints_and_the_type_marker(wheel):
    shipped = wheel / "robustbench_rkhs" / "_shipped"
    for recipe in (ROOT / "models").rglob("*.yaml"):
        assert (shipped / recipe.relative_to(ROOT)).read_bytes() == recipe.read_bytes()
    listed = subprocess.run(["git", "ls-files", "checkpoints"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode or not listed.stdout:
        pytest.skip("no git checkout: cannot tell the checkpoints that belong to the project")
    tracked = {Path(line) for line in listed.stdout.splitlines()}
    held = {path.relative_to(shipped) for path in (shipped / "checkpoints").rglob("*") if path.is_file()}
    assert held == {path for path in tracked if (ROOT / path).stat().st_size < SMALL}
    assert (wheel / "robustbench_rkhs" / "py.typed").is_file()


def test_every_source_file_is_in_the_wheel_and_no_test(wheel):
    source = {path.relative_to(ROOT) for path in (ROOT / "robustbench_rkhs").rglob("*.py")}
    held = {path.relative_to(wheel) for path in wheel.rglob("*.py")}
    assert held == source


def test_a_wheel_alone_evaluates_what_it_ships_and_says_where_the_rest_is(wheel, tmp_path):
    words = ["--eps", "0.25", "--samples", "4", "--effort", "quick", "--no-diagnostics", "--certify", "margin"]
    unknown = ["evaluate", "--model", "robust_vgg", "--eps", "1"]
    codes, _, errors = from_wheel(wheel, tmp_path, ["evaluate", "--model", "digits_mlp", *words], unknown)
    assert codes == [0, 2], errors[-2000:]
    assert list((tmp_path / "reports" / "verdicts" / "digits_mlp").glob("*.parquet"))
    refused = errors[errors.index("error: ") :]
    assert refused.count("\n") == 1
    assert "checkpoints/robust_vgg of the source repository" in refused and "rkhs-train --model robust_vgg" in refused


def test_a_wheel_alone_lists_its_recipes_beside_those_of_the_working_folder(wheel, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "my_own.yaml").write_text("about: Mine\n")
    codes, out, errors = from_wheel(wheel, tmp_path, ["listing", "models"])
    assert codes == [0], errors[-2000:]
    rows = {line.split()[0]: line for line in out.splitlines()[1:] if line.strip()}
    assert {"my_own", "digits_mlp", "robust_vgg"} <= rows.keys()
    assert "* " in rows["digits_mlp"] and "* " not in rows["robust_vgg"]


def test_the_metadata_agree_with_license_and_citation(wheel):
    stated = setup_cfg()["metadata"]
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    (about,) = wheel.glob("*.dist-info")
    metadata = message_from_string((about / "METADATA").read_text())
    assert stated["name"] == metadata["Name"] and stated["name"] in cited["title"]
    assert stated["version"] == metadata["Version"] == cited["version"]
    assert stated["license"] == cited["license"] == metadata["License"] == "MIT"
    assert metadata["Summary"] == stated["description"] == cited["abstract"].rstrip(".")
    assert {stated["author"], metadata["Author"]} == {one["name"] for one in cited["authors"]}
    license_text = (ROOT / "LICENSE").read_text()
    assert license_text.startswith("MIT License") and stated["author"] in license_text
    assert (about / "licenses" / "LICENSE").read_text() == license_text
    assert f"## {stated['version']}" in (ROOT / "CHANGELOG.md").read_text()


def packages(text: str) -> set[str]:
    """The names alone of a list of requirements."""
    ends = str.maketrans(dict.fromkeys("<>=![;", " "))
    return {line.translate(ends).split()[0].lower() for line in text.splitlines() if line.strip()}


def test_what_is_required_and_what_is_an_extra():
    stated = setup_cfg()
    required = packages(stated["options"]["install_requires"])
    extras = {name: packages(text) for name, text in stated["options.extras_require"].items()}
    assert {"torch", "torchvision", "pyautoattack", "foolbox", "pandas", "matplotlib"} <= required
    assert not required & {"optuna", "numba"}
    assert extras["sweep"] == {"optuna"} and extras["brendel_bethge"] == {"numba"}
    assert not extras["test"] & ({"ray", "submitit"} | extras["docs"]) and extras["site"] | extras["serve"] <= extras["test"]
    assert extras["site"] < extras["serve"]


def test_no_line_installs_the_package_from_a_registry():
    """No registry has it: its bare name finds nothing but in an environment where the clone is installed."""
    bare = re.compile(r"pip install[^\n`]*?[ \"']robustbench_rkhs(?!\S* @ git\+)")
    assert bare.search("setup: pip install robustbench_rkhs") and bare.search('pip install "robustbench_rkhs[serve]"')
    works = ('pip install "robustbench_rkhs[serve] @ git+https://x/y"', 'pip install -e ".[serve]"')
    assert not any(bare.search(line) for line in works)
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob(".github/workflows/*")]
    sources = [*ROOT.glob("robustbench_rkhs/**/*.py"), *ROOT.glob("robustbench_rkhs/**/*.html")]
    assert not [path.relative_to(ROOT).as_posix() for path in [*pages, *sources] if bare.search(path.read_text())]


def test_the_workflows_use_the_python_that_the_readme_calls_tested():
    (tested,) = re.findall(r"tested on (3\.\d+)", (ROOT / "README.md").read_text())
    pages = [*ROOT.glob(".github/workflows/*.yml"), ROOT / "docs/howto/ci_gate.md"]
    used = {path.name: re.findall(r"python-version: \"([^\"]+)\"", path.read_text()) for path in pages}
    assert used == {path.name: [tested] for path in pages}


def test_a_missing_extra_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(UserError, match=r"foolbox:brendel_bethge needs numba.*pip install -e '\.\[brendel_bethge\]' in the clone"):
        x = torch.full((1, 4), 0.5)
        FoolboxAttack(attack="brendel_bethge")(torch.nn.Linear(4, 2), x, torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(UserError, match="needs no_such_package"):
        require("no_such_package", "x", "it")
    require("torch", "x", "it")


def test_a_sweep_without_optuna_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    for name in [name for name in sys.modules if name.startswith("robustbench_rkhs.sweep") or name == "robustbench_rkhs.cli.sweep"]:
        monkeypatch.delitem(sys.modules, name)
    out, errors = rkhs("sweep", "--sweep", "digits_gradient", folder=tmp_path, code=2)
    assert out == ""
    assert errors == "error: rkhs-sweep needs optuna, which is not installed: pip install -e '.[sweep]' in the clone\n"
