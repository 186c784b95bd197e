"""Reports: tables and figures from verdicts alone, byte for byte reproducible from the parquet files."""

from collections.abc import Sequence
from pathlib import Path

from robustbench_rkhs.nodes.arguments import checked_arguments
from robustbench_rkhs.nodes.names import file_word
from robustbench_rkhs.reports.curves import draw_curve
from robustbench_rkhs.reports.leaderboard import write_leaderboard
from robustbench_rkhs.reports.tables import write_images, write_tables
from robustbench_rkhs.reports.tradeoff import draw_tradeoff
from robustbench_rkhs.verdicts import Evaluation, digest, read_all

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
    where several share data, norm and box, one more named `all`, with the trade-off at every eps that at least two of them
    evaluated. A single evaluation has its own trade-off plot. On the leaderboard, adversarial images in folder/submitted count.
    `unread`: a line on each table that could not be read, which the leaderboard repeats; those of folder/submitted are added.
    Returns the paths by kind. Raises UserError where they cannot be written.
    """
    evaluations = [evaluations] if isinstance(evaluations, Evaluation) else list(evaluations)
    folder = Path(folder)
    written: dict[str, list[Path]] = {"curves": [], "tables": [], "images": [], "tradeoff": []}
    groups: dict[str, list[tuple[str, Evaluation]]] = {}
    stems = [_stem(one.about.model, one) for one in evaluations]
    for one, stem in zip(evaluations, stems, strict=True):
        name = stem if stems.count(stem) == 1 else f"{stem}-{digest(one.table)[:8]}"
        groups.setdefault(_stem("all", one), []).append((name, one))
        written["curves"] += draw_curve([one], folder / "curves" / name)
        written["tables"] += write_tables([one], folder / "tables" / name)
        written["images"].append(write_images(one, folder / "tables" / f"{name}-images.csv"))
    for group, members in groups.items():
        together = [one for _, one in members]
        if len(members) > 1:
            written["curves"] += draw_curve(together, folder / "curves" / group)
            written["tables"] += write_tables(together, folder / "tables" / group)
        asked = [set(one.about.epsilons) for one in together]
        for eps in sorted(set().union(*asked)):
            both = [one for one, its in zip(together, asked, strict=True) if eps in its]
            if len(members) == 1 or len(both) > 1:
                name = members[0][0] if len(members) == 1 else group
                written["tradeoff"] += draw_tradeoff(both, eps, folder / "tradeoff" / f"{name}-eps{eps:.4g}")
    if leaderboard:
        unread = [] if unread is None else unread
        submitted = read_all(folder / "submitted", unread.append)
        written["leaderboard"] = write_leaderboard([*evaluations, *submitted], folder, unread)
    return written


def _stem(name: str, one: Evaluation) -> str:
    """A file name: model, data, norm and, where there is none, the box."""
    words = [name, one.about.data, one.about.norm, *(["nobox"] if one.about.box == "none" else [])]
    return "-".join(file_word(word) for word in words)
