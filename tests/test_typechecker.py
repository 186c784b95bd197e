"""The tests' own type checker: a wrong type or shape in a call of the package is an error, and scopes end with their call."""

import jaxtyping
import pytest
import torch
from typechecker import jaxtyped

from robustbench_rkhs.attacks.ball import distances, fading
from robustbench_rkhs.attacks.passes import gap_slopes

X, Y = torch.rand(3, 1, 4, 4), torch.zeros(3, dtype=torch.int64)


def test_what_is_stated_passes():
    assert distances(X, X, "linf").tolist() == [0.0] * 3
    assert distances(X[:2], X[:2], "l2").shape == (2,)  # other sizes than in the call before
    assert fading(1, steps=2) == pytest.approx(0.525)
    read = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    assert len(list(gap_slopes(lambda x: (read(x), read(x)), X, Y, torch.ones(3, 2, dtype=torch.int64)))) == 2


@pytest.mark.parametrize(
    "call",
    [
        lambda: distances(X, X[:2], "l2"),  # one letter, two sizes
        lambda: distances(X, X.long(), "l2"),
        lambda: distances(X, X, "l3"),
        lambda: fading("1", 2),  # no shape in sight
        lambda: gap_slopes(lambda x: (x, x), X, Y[:2], Y[:, None]),  # a generator
        lambda: distances(X, X[:2], norm="l2"),  # after all that failed
    ],
)
def test_what_is_not_stated_is_an_error(call):
    with pytest.raises(jaxtyping.TypeCheckError):
        call()


def test_what_is_returned_is_checked_with_the_sizes_of_what_was_given():
    @jaxtyped(typechecker=None)
    def halved(x: jaxtyping.Float[torch.Tensor, " n"]) -> jaxtyping.Float[torch.Tensor, " n"]:
        return x[: len(x) // 2]

    @jaxtyped(typechecker=None)
    def counted(x: jaxtyping.Float[torch.Tensor, " n"]) -> int:
        return "many" if len(x) > 2 else len(x)

    assert halved(torch.ones(0)).shape == (0,) and counted(torch.ones(2)) == 2
    for call in (halved, counted):
        with pytest.raises(jaxtyping.TypeCheckError):
            call(torch.ones(4))
