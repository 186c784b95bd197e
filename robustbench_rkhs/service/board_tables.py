"""A submission's own tables on the board: taken off and put back, and the board drawn without or with them."""

import json
import os
from pathlib import Path

from robustbench_rkhs.service import lifecycle
from robustbench_rkhs.service.database import Database
from robustbench_rkhs.service.evaluating import build_site_alone
from robustbench_rkhs.service.settings import Settings
from robustbench_rkhs.service.submission import Submission


def hidden(settings: Settings, number: int) -> Path:
    """The folder of what a person took off the board."""
    return settings.folder / "hidden" / str(number)


def withdrawn(settings: Settings, number: int) -> Path:
    """The folder of what a later refusal took off the board: kept, and never put back by itself."""
    return settings.folder / "withdrawn" / str(number)


def tables_of(one: Submission) -> list[Path]:
    """The submission's own tables: paths below OUT."""
    return [Path(name) for name in json.loads(one.tables)]


def withdraw(settings: Settings, database: Database, one: Submission) -> int:
    """Take the tables of an earlier acceptance off the board, but for those that another submission shares; how many there were.

    Raises UserError where the board cannot be drawn.
    """
    known = lifecycle.of_number(database, one.number)
    shared = {path for other in lifecycle.others_accepted(database, one) for path in tables_of(other)}
    own = [path for path in tables_of(known or one) if path not in shared]
    move(own, settings.out, withdrawn(settings, one.number))
    if own:  # also where a worker died after it had moved them
        draw(settings)
    return len(own)


def move(paths: list[Path], source: Path, target: Path) -> int:
    """Move these tables, as far as they are there; how many were."""
    found = [path for path in paths if (source / path).is_file()]
    for path in found:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(source / path, target / path)
    return len(found)


def draw(settings: Settings) -> None:
    """Bring reports and site up to date. Raises UserError."""
    build_site_alone(settings, reports=True)
