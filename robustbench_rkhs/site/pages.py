"""Pages: templates filled in, with every text escaped, and written where they changed."""

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from robustbench_rkhs.runtime.files import write_whole
from robustbench_rkhs.runtime.sinks import for_line, for_terminal

HERE = Path(__file__).parent
NEW = ".new"
"""Ending of a page that waits to be put in its place."""


def _plain(value: Any) -> Any:
    """Text without invisible characters or changes of the reading direction; what is markup already stays."""
    return for_line(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def environment() -> Environment:
    """The templates: all texts are escaped, and a name that is missing is an error."""
    found = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_plain,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["lines"] = lambda text: Markup(escape(for_terminal(text)))
    return found


def write_page(path: Path, template: str, root: str, **values: Any) -> Path:
    """Fill in a template and write it, hidden, beside its place, where `publish` puts it. Raises Unwritable.

    root: the way from the page to the top of the site. What waits there for a page that is as it should be is removed.
    """
    content = environment().get_template(template).render(root=root, **values).encode()
    waiting = path.with_name(f".{path.name}{NEW}")
    if path.is_file() and path.read_bytes() == content:
        waiting.unlink(missing_ok=True)
    else:
        write_changed(waiting, content)
    return path


def write_changed(path: Path, content: bytes) -> Path:
    """Write a file, whole or absent, unless it has this content already. Raises Unwritable."""
    if not path.is_file() or path.read_bytes() != content:
        write_whole(path, lambda temporary: temporary.write_bytes(content))
    return path


def write_data(path: Path, key: str, value: Mapping[str, Any]) -> Path:
    """Data as a classic script, which a page that was opened from disk can load (it cannot fetch). Raises Unwritable."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return write_changed(path, f"rkhs.data[{json.dumps(key)}]={text};\n".encode())


@cache
def site_digest() -> str:
    """sha256 over the sources, templates and scripts of the site: pages are made again where any of them changed."""
    sha = hashlib.sha256()
    for path in sorted(path for path in HERE.rglob("*") if path.is_file() and path.suffix != ".pyc"):
        sha.update(path.relative_to(HERE).as_posix().encode() + path.read_bytes())
    return sha.hexdigest()
