"""Files that are not there: the error, with the name that was perhaps meant."""

import difflib
from collections.abc import Iterable
from pathlib import Path

from robustbench_rkhs.nodes.node import UserError

FEW = 5
"""Files that are named where none is similar."""
NEAR = 0.7
"""How alike a name has to be, without its ending, to be suggested."""


def missing(what: str, name: str, where: str = "") -> UserError:
    """The error for a file that is not there. `what`: what was expected; `where`: where else it was looked for."""
    return UserError(f"no {what} {name[:200]!r}{where}{beside(name)}")


def missing_folder(what: str, name: str, places: Iterable[Path] = ()) -> UserError:
    """The same for a folder. `places`: other folders where one of such a name may lie."""
    path = Path(name)
    known = [one for place in (path.parent, *places) for one in _folders(place)]
    names = {one.name: str(one) for one in reversed(known)}
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=NEAR)
    return UserError(f"no {what} {name[:200]!r}{f'; did you mean {names[close[0]]!r}?' if close else ''}")


def _folders(place: Path) -> list[Path]:
    try:
        return sorted(one for one in place.iterdir() if one.is_dir() and not one.name.startswith("."))
    except OSError:
        return []


def beside(name: str) -> str:
    """`; did you mean ...?` with the most similar name of the same ending in its folder, or else what is there."""
    path = Path(name)
    try:
        stems = sorted(one.stem for one in path.parent.iterdir() if one.suffix == path.suffix and one.is_file())
    except FileNotFoundError:
        return f"; there is no folder {str(path.parent)[:200]!r}"
    except OSError:
        return ""
    close = difflib.get_close_matches(path.stem, stems, n=1, cutoff=NEAR)
    if close or not stems:
        return f"; did you mean {str(path.with_stem(close[0]))!r}?" if close else ""
    more = f" and {len(stems) - FEW} more" if len(stems) > FEW else ""
    return f"; its folder holds {', '.join(repr(str(path.with_stem(stem))) for stem in stems[:FEW])}{more}"
