"""Files of the static site, as the service sends them, and the pages of the site that show a submission."""

import re
from contextlib import suppress
from pathlib import Path

from fastapi.responses import FileResponse, HTMLResponse, Response
from starlette.exceptions import HTTPException

from robustbench_rkhs.service.board_tables import tables_of
from robustbench_rkhs.service.settings import Settings
from robustbench_rkhs.service.submission import Status, Submission
from robustbench_rkhs.site.pages import HERE as SITE

LINKS = '<a href="/submissions">Submissions</a>\n<a href="/submit">Submit</a>\n</nav>'
"""What the pages of the static site get, too, when the service sends them."""
TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".json": "application/json",
    ".csv": "text/csv",
    ".txt": "text/plain",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".parquet": "application/octet-stream",
    ".npz": "application/octet-stream",
}
"""Files of the site that are sent, with their types; those of the last type are saved, never shown."""
BOARD = re.compile(r'<a href="\.\./boards/([\w.-]+)\.html">([^<]*)</a>')
"""A link from a model's page to a board."""


def site_file(settings: Settings, path: str) -> Response:
    """A file of the static site; its pages get links to the service. Raises HTTPException (404)."""
    try:
        found = file_below(settings.site, path)
    except HTTPException:  # before the site is built for the first time, the service's pages have their style all the same
        folder, _, name = path.partition("/")
        if folder != "assets":
            raise
        found = file_below(SITE / "static", name)
    if Path(path).suffix != ".html":
        return found
    try:
        text = Path(found.path).read_text(encoding="utf-8")
    except OSError:
        raise HTTPException(404, "there is no such page") from None
    return HTMLResponse(text.replace("</nav>", LINKS, 1))


def file_below(folder: Path, path: str) -> FileResponse:
    """A file below the folder, no link and nothing hidden. Raises HTTPException (404)."""
    parts = path.split("/")
    plain = "\0" not in path and not any(part in ("", "..") or part.startswith(".") for part in parts)
    found = folder.joinpath(*parts) if plain and len(path) < 1000 else folder
    kind = TYPES.get(Path(path).suffix)
    try:
        if kind and found.is_file() and found.resolve().is_relative_to(folder.resolve()):
            return FileResponse(found, media_type=kind, filename=found.name if kind == TYPES[".npz"] else None)
    except OSError:
        pass  # a name that is too long
    raise HTTPException(404, "there is no such page")


def pages_of(settings: Settings, one: Submission) -> list[tuple[str, str]]:
    """Where the site shows an accepted submission: address and words, the model's page first, then its boards."""
    if one.status != Status.ACCEPTED or one.hidden:
        return []
    names = {path.parent.name for path in tables_of(one)} | ({one.name} if one.kind == "checkpoint" else set())
    pages = sorted(path for name in names for path in _pages(settings.site / "models", name))
    boards: dict[str, str] = {}
    for page in pages:
        with suppress(OSError):  # the site is being built
            for slug, words in BOARD.findall(page.read_text(encoding="utf-8")):
                boards[f"/boards/{slug}.html"] = f"Board at {words}"
    return [(f"/models/{page.name}", f"Its page: {page.stem}") for page in pages] + sorted(boards.items())


def _pages(folder: Path, name: str) -> list[Path]:
    """The pages of models of this name; where several models bear it, they end with digits of their keys."""
    plain = folder / f"{name}.html"
    if plain.is_file():
        return [plain]
    keyed = re.compile(rf"{re.escape(name)}-[0-9a-f]{{12}}\.html")
    return [path for path in folder.glob("*.html") if keyed.fullmatch(path.name)]
