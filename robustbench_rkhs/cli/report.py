"""rkhs-report: redraw all reports from the verdicts alone."""

from collections.abc import Sequence
from pathlib import Path

from robustbench_rkhs.cli.command import AsJson, Names, command
from robustbench_rkhs.cli.screen import emit, printed
from robustbench_rkhs.cli.values import Count, Folder
from robustbench_rkhs.nodes.node import UserError


def _report(
    out: Folder = Path("reports"),
    model: Names = (),
    adversarials: tuple[Path, ...] = (),
    data: str | None = None,
    images: Count = 8,
    as_json: AsJson = False,
) -> None:
    """Redraw every curve, table, trade-off plot and the leaderboard from the verdicts alone, and the nearest adversarial images.

    $ rkhs-report
    $ rkhs-report --adversarials mine.npz

    A table that cannot be read is named, on stderr and on the leaderboard, and left out.

    Args:
        out: The folder that holds verdicts/, and where reports go.
        model: Only these models; default: all.
        adversarials: Files written by rkhs-eval --save-adversarials, drawn as OUT/pictures/nearest-NAME.*; default: those
            in OUT/adversarials.
        data: Data set or FILE.npz of the adversarial images, if their files do not name one.
        images: Adversarial images per picture.
        as_json: Print one JSON object on stdout, with the path of every file.
    """
    from robustbench_rkhs import verdicts
    from robustbench_rkhs.reports import report as write_reports

    unread: list[str] = []
    found = [done for done in verdicts.read_all(out / "verdicts", unread.append) if not model or done.about.model in model]
    if not found and not adversarials:
        raise UserError(f"no verdicts in {out / 'verdicts'}: {unread[0] if unread else 'run rkhs-eval first'}")
    written = write_reports(found, out, unread=unread) if found else {}
    for line in unread:
        printed(f"not read: {line}", stderr=True)
    for file in adversarials or sorted((out / "adversarials").glob("*.npz")):
        from robustbench_rkhs.pictures import nearest_picture

        try:
            written.setdefault("nearest", []).extend(nearest_picture(file, out / "pictures", data, images))
        except UserError as error:
            if adversarials:
                raise
            printed(f"not drawn: {error}", stderr=True)
    for kind, paths in written.items():
        printed(f"{kind}: {_in_short(paths)}")
    if as_json:
        emit(written)


def _in_short(paths: Sequence[Path]) -> str:
    """One file by its path; for several, their number in each folder."""
    if len(paths) == 1:
        return str(paths[0])
    folders = [path.parent for path in paths]
    return ", ".join(f"{folders.count(folder)} files in {folder}" for folder in dict.fromkeys(folders)) or "none"


main = command(_report, quick=True)
