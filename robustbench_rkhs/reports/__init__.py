"""Reports: tables and figures from verdicts alone, byte for byte reproducible from the parquet files."""

from collections.abc import Sequence
from pathlib import Path

from robustbench_rkhs.nodes.arguments import checked_arguments
from robustbench_rkhs.reports.curves import draw_curve
from robustbench_rkhs.reports.drawn import Drawn
from robustbench_rkhs.reports.leaderboard import write_leaderboard
from robustbench_rkhs.reports.own_files import Written, draw_own, merge_into, stems
from robustbench_rkhs.reports.tables import write_images, write_tables
from robustbench_rkhs.reports.together import draw_together
from robustbench_rkhs.reports.tradeoff import draw_tradeoff
from robustbench_rkhs.verdicts import Brief, BriefCache, Evaluation

__all__ = ["draw_curve", "draw_tradeoff", "report", "write_images", "write_leaderboard", "write_tables"]


@checked_arguments(out="folder", evaluation="evaluations")
def report(
    evaluations: Evaluation | Sequence[Evaluation],
    folder: str | Path,
    leaderboard: bool = True,
    unread: list[str] | None = None,
) -> dict[str, list[Path]]:
    """Curves, tables and trade-off plots under folder/curves, tables and tradeoff; the leaderboard in folder itself.

    One set for each evaluation, named after its model, data, norm (and `nobox`), with a row for each image (NAME-images.csv);
    where several are comparable (the same images, norm, box, eps and attacks), one more named `all`, with the trade-off at every
    eps that at least two of them evaluated. Of several such sets the one on most images is drawn; ``all-*-apart.md`` names the
    others, with the reason. Files whose inputs did not change since the last report in this folder are left as they are.
    On the leaderboard, adversarial images in folder/submitted count.
    `unread`: a line on each table that could not be read, which the leaderboard repeats; those of folder/submitted are added.
    Returns the paths by kind. Raises UserError where they cannot be written.
    """
    briefs = [Brief.of(one) for one in ([evaluations] if isinstance(evaluations, Evaluation) else evaluations)]
    folder = Path(folder)
    drawn, written = Drawn(folder), Written()
    for one, name in zip(briefs, stems(briefs), strict=True):
        merge_into(written, draw_own(one, name, drawn))
    merge_into(written, draw_together(briefs, drawn)[0])
    drawn.save(others=True)
    if leaderboard:
        unread = [] if unread is None else unread
        submitted = BriefCache().read_all(folder / "submitted", unread.append)
        written["leaderboard"] = write_leaderboard([*briefs, *submitted], folder, unread)
    return written
