"""`rkhs-report`: an option that the asked-for work has no use for is refused, never ignored."""

import inspect
import subprocess
import sys

import pytest
from test_places import stored

from robustbench_rkhs.cli.report import ALONE, ANY, WITH, _check_alone, _report
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.site.assets import PACKAGES

HIDDEN = """
import importlib.util, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == {missing!r} else found(name, *more)
sys.modules[{missing!r}] = None
from robustbench_rkhs.cli.report import main
sys.argv = ["rkhs-report", *{words!r}]
main()
"""
"""A program in which a module is not installed."""
OPTIONS = set(inspect.signature(_report).parameters)
DRAWN = ANY | {"model", "adversarials", "data", "images"}
"""What drawing takes where nothing else is asked for."""


def test_every_option_has_a_place():
    alone = set().union(*(options | others for options, others, _ in ALONE))
    assert alone | DRAWN | set().union(*(options for options, _ in WITH)) == OPTIONS


@pytest.mark.parametrize("place", range(len(ALONE)))
def test_what_stands_alone_refuses_everything_else(place):
    options, others, words = ALONE[place]
    before = set().union(*(one for one, _, _ in ALONE[:place]), set())
    for option in options:
        for other in OPTIONS - before - {option}:
            if other in options | others:
                _check_alone({option, other})
            else:
                with pytest.raises(UserError) as caught:
                    _check_alone({option, other})
                assert str(caught.value) == words


@pytest.mark.parametrize("option", sorted(OPTIONS - set().union(*(options for options, _, _ in ALONE))))
def test_options_of_others_are_refused_where_these_are_missing(option):
    if option in DRAWN:
        _check_alone({option})
    else:
        with pytest.raises(UserError, match=rf"^--{option}: expected it with --"):
            _check_alone({option})


@pytest.mark.parametrize("words", [["--site", "site"], ["--export", "away"]])
@pytest.mark.parametrize("missing", PACKAGES)
def test_a_package_that_is_missing_is_named_with_what_installs_it(tmp_path, missing, words):
    stored(tmp_path / "reports", "m", "1")
    program = HIDDEN.format(missing=missing, words=words)
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    line = f"error: rkhs-report --site needs {missing}, which is not installed: pip install -e '.[site]' in the clone\n"
    assert (done.returncode, done.stderr) == (2, line) and not (tmp_path / "site").exists()
