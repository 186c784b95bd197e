"""rkhs-list: list models and methods."""

from typing import Annotated, Literal

import tyro

from robustbench_rkhs.cli.command import command
from robustbench_rkhs.cli.screen import printed


def _listing(
    kind: Annotated[
        Literal["all", "models", "attacks", "certificates", "losses", "penalties", "samplers", "projections", "networks", "data"],
        tyro.conf.Positional,
    ] = "all",
    name: Annotated[str | None, tyro.conf.Positional] = None,
) -> None:
    """List models, attacks, certificates, losses ..., ours and those of installed plugins.

    With a name: its card, or a model's whole recipe.

    $ rkhs-list
    $ rkhs-list attacks pgd

    Args:
        kind: One kind, or all.
        name: One of that kind.
    """
    from robustbench_rkhs.listing import listing

    printed(listing(kind, name))


main = command(_listing, quick=True)
