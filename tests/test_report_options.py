"""`rkhs-report`: an option that the asked-for work has no use for is refused, never ignored."""

import inspect

import pytest

from robustbench_rkhs.cli.report import ALONE, ANY, WITH, _check_alone, _report
from robustbench_rkhs.nodes.node import UserError

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
