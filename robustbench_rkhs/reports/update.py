"""Bringing the reports of a folder up to date with the tables in it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from robustbench_rkhs.reports.claimed import read_claims
from robustbench_rkhs.reports.drawn import Drawn
from robustbench_rkhs.reports.leaderboard import write_leaderboard
from robustbench_rkhs.reports.own_files import Written, draw_own, merge_into, stems
from robustbench_rkhs.reports.places import Places
from robustbench_rkhs.reports.together import MOST, draw_together
from robustbench_rkhs.runtime.events import PhaseStarted, emit
from robustbench_rkhs.runtime.ignored import ignored
from robustbench_rkhs.runtime.steps import stepped
from robustbench_rkhs.verdicts import Brief, Evaluation, Published


@dataclass
class Updated:
    """What an update found and wrote."""

    written: Written = field(default_factory=Written)
    unread: list[str] = field(default_factory=list)
    """A line on each table that could not be read."""
    apart: list[str] = field(default_factory=list)
    """A line on each evaluation that is not drawn with the others."""
    tables: int = 0


def draw_run(places: Places, one: Evaluation | Brief) -> Written:
    """The figures and tables of one evaluation in OUT/local, under the name of the run."""
    brief, drawn = Brief.of(one), Drawn(places.run(one))
    written = draw_own(brief, stems([brief])[0], drawn)
    drawn.save(others=True)
    return written


def update(out: Path, models: Sequence[str] = ()) -> Updated:
    """Draws what is new: each unpublished evaluation, the figures of several models and the leaderboard, under OUT/local.

    models: only these; without them the figures of several show the MOST models of the highest robust accuracy.
    What is published is counted and drawn with the others, but nothing outside OUT/local is written. Raises UserError where
    files cannot be written. Cost: 2 ms per table that is known, 0.2 s for a new one, 3 s for its figures, and as much for each
    figure of several models that changes.
    """
    places, found = Places(out), Updated()
    emit(PhaseStarted(phase="reading verdicts"))
    cache = places.cache()
    briefs = [one for one in cache.read_all(places.verdicts, found.unread.append) if not models or one.about.model in models]
    found.tables = len(briefs)
    if not briefs and (models or not (places.local / "leaderboard.md").is_file()):
        return found  # else what was drawn of tables that are gone goes, too
    submitted = cache.read_all(places.submitted, found.unread.append)
    published = set(Published(places.verdicts).paths())
    with stepped("drawing", "", len(briefs), "evaluations") as step:
        for one in briefs:
            if one.path not in published:
                merge_into(found.written, draw_run(places, one))
            step.add()
            step.tell(detail=one.about.model)
    emit(PhaseStarted(phase="drawing evaluations together, and the leaderboard"))
    drawn = Drawn(ignored(places.local))
    together, found.apart = draw_together(briefs, drawn, None if models else MOST)
    merge_into(found.written, together)
    drawn.save(others=bool(models))
    claims = read_claims(places.claims, found.unread.append)
    tables = [*briefs, *submitted]
    found.written["leaderboard"] = write_leaderboard(tables, places.local, found.unread, cache, today=True, claims=claims)
    return found
