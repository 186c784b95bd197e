"""Documentation that cannot rot: every code block of README, CONTRIBUTING and docs/ is run, and every link leads somewhere."""

import doctest
import importlib
import itertools
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documentation import COMMENT, INSTALL, ROOT, Place, blocks, pages

import robustbench_rkhs

LINK = re.compile(r"\[[^\]]*\]\((?!https?:|#|mailto:)([^)#\s]+)[^)]*\)")


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_code_block_runs(page, tmp_path, subtests):
    skipped, found = False, list(blocks(page))
    if not found:
        return
    place = Place(tmp_path)
    for block, after in itertools.zip_longest(found, found[1:]):
        with subtests.test(msg=block.where):
            reason = block.lacks()
            if reason or (skipped and block.kind == "output"):
                skipped = True
                pytest.skip(reason or "shows what the block before it prints")
            skipped = False
            place.run(block.in_small(shown=after is not None and after.kind == "output"))
    with subtests.test(msg="what git sees"):
        assert not place.changes(), f"commands of {page.name} changed tracked files"


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file(page):
    outside = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)
    missing = [link for link in LINK.findall(outside) if not (page.parent / link).exists()]
    assert not missing


def test_the_readme_is_short_and_ci_runs_its_two_install_lines():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    assert [block.kind for block in blocks(ROOT / "README.md") if block.kind in INSTALL] == ["main", "test"]
    script = (ROOT / ".ci" / "run").read_text()
    assert all(f"$(line {kind})" in script for kind in INSTALL)
    for page in pages()[1:]:
        found = [block.where for block in blocks(page) if block.kind in INSTALL]
        assert not found, "install lines: README's alone are run by .ci/run"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("```python\nassert False, 'red'\n```\n", "red"),
        ("```sh\nfalse\n```\n", "`false` ended with 1, expected 0"),
        ("```sh\nrkhs-list attacks no_such_attack\n```\n", "ended with 2, expected 0"),
        ("```sh\nrkhs-list attacks pgd | grep no_such_line\n```\n", "ended with 1, expected 0"),
        ("<!-- exit: 1 -->\n```sh\ntrue\n```\n", "`true` ended with 0, expected 1"),
        ("```python\nprint(1)\n```\n\n<!-- output -->\n```text\n2\n```\n", "but the block before it printed\n1"),
        ("```python\nn = 1\n```\n\n```python\nprint(n)\n```\n", "name 'n' is not defined"),
        ("```ruby\n```\n", "found 'ruby'"),
        ("```yaml\nname: nobody\n```\n", "is a file"),
        ("<!-- skip -->\n```sh\ntrue\n```\n", "unknown comment 'skip'"),
    ],
)
def test_the_runner_sees_what_is_wrong(text, error, tmp_path):
    place = Place(tmp_path, clone=False)
    with pytest.raises((AssertionError, NameError), match=re.escape(error)):
        for block in blocks(Path("page.md"), text):
            place.run(block)


def test_the_runner_runs_what_is_right(tmp_path):
    text = """
    # a page

    ```python
    # nets.py
    WIDTH = 3
    ```
    ```sh
    # a comment
    rkhs-list attacks pgd   # in this process
    rkhs-list attacks pgd | sed -n 1p && \\
      python -c 'import nets, robustbench_rkhs; print(nets.WIDTH)'
    ```
    <!-- output -->
    ```text
    pgd
    ...
    pgd
    3
    ```
    <!-- needs: no/such/data -->
    ```sh
    false
    ```
    """
    place, found = Place(tmp_path), list(blocks(Path("page.md"), text.replace("\n    ", "\n")))
    assert [block.language for block in found] == ["python", "sh", "text", "sh"]
    for block in found[:3]:
        place.run(block)
    assert "nets" not in sys.modules and str(tmp_path) not in sys.path
    assert "has no no/such/data" in found[3].lacks() and not any(block.lacks() for block in found[:3])


def test_no_comment_before_a_block_is_lost():
    """A misspelt marker would make a block run that must not, or hide what is skipped."""
    for page in pages():
        lines = page.read_text().splitlines()
        marked = sum(bool(COMMENT.match(line)) and after.lstrip().startswith("```") for line, after in itertools.pairwise(lines))
        assert marked == sum(bool(block.kind) for block in blocks(page))


def test_examples_in_docstrings_hold():
    ran = 0
    for found in pkgutil.walk_packages(robustbench_rkhs.__path__, "robustbench_rkhs."):
        path = Path(found.module_finder.path) / found.name.rpartition(".")[2]
        path = path / "__init__.py" if found.ispkg else path.with_suffix(".py")
        if ">>>" in path.read_text():
            failed, tried = doctest.testmod(importlib.import_module(found.name), optionflags=doctest.NORMALIZE_WHITESPACE)
            assert not failed, found.name
            ran += tried
    assert ran


def test_the_pages_build_without_a_warning(tmp_path):
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install -e '.[docs]'")
    docs = tmp_path / "docs"
    shutil.copytree(ROOT / "docs", docs, ignore=shutil.ignore_patterns("_build"))
    words = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(ROOT / "docs"), str(tmp_path / "html")]
    done = subprocess.run([*words, "-d", str(tmp_path / "trees")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "html" / "index.html").is_file()
