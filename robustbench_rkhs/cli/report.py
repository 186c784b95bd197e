"""rkhs-report: redraw all reports from the verdicts alone."""

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from robustbench_rkhs.cli.command import AsJson, Names, command, typed_command
from robustbench_rkhs.cli.display import Quiet, shown
from robustbench_rkhs.cli.engines import chosen_engine, leading, submitted
from robustbench_rkhs.cli.screen import console_of_width, emit, printed
from robustbench_rkhs.cli.values import Count, Device, EngineName, Folder
from robustbench_rkhs.evaluation.engine_choice import Submitit, engine_from
from robustbench_rkhs.nodes.counts import counted
from robustbench_rkhs.nodes.node import UserError

if TYPE_CHECKING:
    from robustbench_rkhs.reports.update import Updated


ANY = {"out", "as_json", "quiet"}
PUBLISHED = {"publish", "withdraw", "published"}
ALONE: tuple[tuple[set[str], set[str], str], ...] = (
    ({"site"}, ANY, "--site writes all pages of OUT: expected it with no other option than --out, --json and --quiet"),
    ({"claims"}, ANY, "--claims and --export do one thing: expected no other option than --out and --json"),
    ({"export"}, ANY, "--claims and --export do one thing: expected no other option than --out and --json"),
    (
        {"rejudge"},
        ANY | {"model", "cheap", "device", "engine"},
        "--rejudge evaluates again: expected no other option than --out, --model, --cheap, --device, --engine, --json",
    ),
    (
        {"table", "names"},
        ANY | {"model", "name"},
        "--table and --names make a table alone: expected only --model, --name, --out and --json",
    ),
    (PUBLISHED, ANY, "--publish, --withdraw and --published draw all that is published: leave out --model and --adversarials"),
)
"""What does one thing, what may stand beside it, and what is said of anything else."""
WITH = (({"engine", "device", "cheap"}, "--rejudge"), ({"name"}, "--table"))
"""Options of one of these alone."""


def _report(
    out: Folder = Path("reports"),
    model: Names = (),
    publish: Names = (),
    withdraw: Names = (),
    published: bool = False,
    adversarials: tuple[Path, ...] = (),
    data: str | None = None,
    images: Count = 8,
    table: str | None = None,
    names: Names = (),
    name: str = "paper",
    site: Path | None = None,
    claims: Path | None = None,
    export: Path | None = None,
    rejudge: bool = False,
    cheap: Annotated[float, Field(ge=0)] = 60.0,
    device: Device = "cpu",
    as_json: AsJson = False,
    quiet: Quiet = False,
    engine: EngineName = "here",
) -> None:
    """Draw what is new: curves, tables, trade-off plots and the leaderboard, from the verdicts alone, under OUT/local.

    $ rkhs-report
    $ rkhs-report --publish digits_mlp
    $ rkhs-report --adversarials mine.npz
    $ rkhs-report --site site
    $ rkhs-report --rejudge
    $ rkhs-report --table "robust@0.25,0.5 certified@36/255" --model digits_mlp digits_sandwich --names Ours Sandwich

    OUT/local holds the reports of this machine, which git ignores. OUT itself holds what is published, and only --publish,
    --withdraw and --published write there. Figures of several models show the strongest comparable evaluations (the same images,
    norm, box, eps and attacks); the others are named, with the reason. A table that cannot be read is named, on stderr and on the
    leaderboard, and left out.

    Args:
        out: The folder that holds verdicts/, and where reports go.
        model: Only these models; default: all, of which figures show the 12 of the highest robust accuracy.
        publish: Let git see the strongest table of these models (or MODEL/FILE), and draw the reports of all that is published
            in OUT itself. KIND/FILE of OUT/local, such as norms/digits_mlp-0a1b2c3d, is copied.
        withdraw: Let git ignore the published tables of these models (or MODEL/FILE) again, and draw what is published.
        published: Draw again what is published, in OUT itself, where tables or code changed.
        adversarials: Files written by rkhs-eval --save-adversarials, drawn as OUT/local/pictures/nearest-NAME.*; default: those
            in OUT/adversarials.
        data: Data set or FILE.npz of the adversarial images, if their files do not name one.
        images: Adversarial images per picture.
        table: A table for a paper, and nothing else: clean, robust@EPS,... and certified@EPS,..., one column per eps, as
            OUT/local/tables/NAME.tex (booktabs), .md and .csv. Best in bold, ties by the paired test underlined.
        names: Names to print in the table, one for each of --model.
        name: Name of the table's files.
        site: Write web pages to this folder, and nothing else: boards, models, comparison, methods. They open from the file
            system, without a network, and show all tables in OUT. What did not change is left as it is.
        claims: Copy entries of RobustBench's model_info (a file, or a folder of DATA/NORM/NAME.json) to OUT/claims, and nothing
            else. Boards show them as claimed, apart from what is measured.
        export: Write the ranked rows to this folder in the forms of RobustBench (model_info) and of the Hugging Face Hub
            (.eval_results), and nothing else.
        rejudge: Evaluate again, with today's code, what older code evaluated and is cheap; name the rest with its commands, and
            draw what is new. With --model, only these.
        cheap: With --rejudge: the most seconds that an evaluation took to be done again.
        device: With --rejudge: cpu, cuda ...
        as_json: Print one JSON object on stdout, with the path of every file.
        engine: With --rejudge: what computes: here; torchrun or srun; submitit:tasks=8,partition=NAME; ray:gpus=1.
    """
    _check_alone(_typed(locals()))
    if isinstance(array := engine_from(engine), Submitit):
        raise SystemExit(submitted(array, device, quiet))
    from robustbench_rkhs.reports.places import Places
    from robustbench_rkhs.reports.update import update

    if site is not None:
        return _site(out, site, as_json, quiet)
    if claims is not None or export is not None:
        return _claims(out, claims, as_json) if claims is not None else _export(out, export or Path(), as_json)
    if rejudge:
        return _rejudge(out, model, cheap, (engine, device), as_json, quiet)
    if table is not None or names:
        written = _table(out, table or "", model, names, name)
        printed(f"table: {' '.join(map(str, written))}")
        return emit({"table": written}) if as_json else None
    shipped = bool(publish or withdraw or published)
    with shown(console_of_width(120, stderr=False), quiet):
        found = _published(out, publish, withdraw) if shipped else update(out, model)
    if not shipped and not found.tables and not adversarials:
        raise UserError(f"no verdicts in {out / 'verdicts'}: {found.unread[0] if found.unread else 'run rkhs-eval first'}")
    for line in found.unread:
        printed(f"not read: {line}", stderr=True)
    for line in found.apart:
        printed(line)
    files = adversarials or (() if shipped else sorted((out / "adversarials").glob("*.npz")))
    for file in files:
        from robustbench_rkhs.pictures import nearest_picture

        try:
            found.written.setdefault("nearest", []).extend(nearest_picture(file, Places(out).local / "pictures", data, images))
        except UserError as error:
            if adversarials:
                raise
            printed(f"not drawn: {error}", stderr=True)
    for kind, paths in found.written.items():
        printed(f"{kind}: {_in_short(paths)}")
    if as_json:
        emit(found.written)


def _claims(out: Path, path: Path, as_json: bool) -> None:
    """Copy claims and say how many there are."""
    from robustbench_rkhs.reports.claimed import import_claims
    from robustbench_rkhs.reports.places import Places

    unread = list[str]()
    found = import_claims(path, out, unread.append)
    for line in unread:
        printed(f"not read: {line}", stderr=True)
    printed(f"claims: {len(found)} in {Places(out).claims}, {len(unread)} not read", stderr=as_json)
    if as_json:
        emit({"claims": [one.model for one in found], "not_read": unread})


def _export(out: Path, folder: Path, as_json: bool) -> None:
    """Write the rows in the forms of others."""
    from robustbench_rkhs.site.exported import export
    from robustbench_rkhs.verdicts.store import table_paths

    if not table_paths(out / "verdicts"):
        raise UserError(f"no verdicts in {out / 'verdicts'}: run rkhs-eval first")
    unread = list[str]()
    written = export(out, folder, unread)
    for line in unread:
        printed(f"note: {line}", stderr=True)
    printed(f"export: {_in_short(written)}", stderr=as_json)
    if as_json:
        emit({"export": written, "notes": unread})


def _rejudge(out: Path, models: Names, cheap: float, where: tuple[str, str], as_json: bool, quiet: bool) -> None:
    """Evaluate stale tables again, tell what became of each, and draw what is new."""
    from robustbench_rkhs.audit.rejudging import rejudge
    from robustbench_rkhs.reports.update import update

    found, (choice, device) = [], chosen_engine(*where)
    with leading(choice) as leads, shown(console_of_width(120, stderr=as_json), quiet or not leads):
        for one in rejudge(out, models, cheap, device, choice):
            printed(one.line, stderr=as_json)
            if one.command:
                printed(f"  {one.command}", stderr=as_json)
            found.append(one)
        if leads and any(one.done for one in found):
            update(out, models)
    if not leads:
        return
    done, stale = sum(one.done is not None for one in found), counted(len(found), "table")
    printed(f"stale: {stale}, {done} evaluated again, {len(found) - done} left with their commands", stderr=as_json)
    if as_json:
        emit({"stale": [dataclasses.asdict(one) for one in found]})


def _typed(values: Mapping[str, object]) -> set[str]:
    """The options that are not as they are by default."""
    return {name for name, one in inspect.signature(_report).parameters.items() if values[name] != one.default}


def _check_alone(given: set[str]) -> None:
    """Raises UserError where options are given that the asked-for work has no use for."""
    for options, others, words in ALONE:
        if given & options:
            if given - options - others:
                raise UserError(words)
            return
    for options, asked in WITH:
        if stray := sorted(given & options):
            raise UserError(f"--{stray[0]}: expected it with {asked}")


def _site(out: Path, folder: Path, as_json: bool, quiet: bool) -> None:
    """Build the site, and say where to open it."""
    from robustbench_rkhs.site import build_site
    from robustbench_rkhs.verdicts.store import table_paths

    if not table_paths(out / "verdicts"):
        raise UserError(f"no verdicts in {out / 'verdicts'}: run rkhs-eval first")
    with shown(console_of_width(120, stderr=False), quiet):
        built = build_site(out, folder)
    for line in built.unread:
        printed(f"not read: {line}", stderr=True)
    printed(f"site: {counted(built.boards, 'board')}, {counted(built.models, 'model')}: open {built.folder / 'index.html'}")
    if as_json:
        emit({"site": built.files})


def _table(out: Path, text: str, models: Names, names: Names, name: str) -> list[Path]:
    """Print a table for a paper and write its files."""
    from robustbench_rkhs.nodes.names import plain_name
    from robustbench_rkhs.reports.paper_formats import as_markdown, write_paper_table
    from robustbench_rkhs.reports.paper_table import paper_table
    from robustbench_rkhs.reports.places import Places
    from robustbench_rkhs.reports.table_models import table_models
    from robustbench_rkhs.reports.table_request import columns_of
    from robustbench_rkhs.runtime.ignored import ignored

    columns, places, unread = columns_of(text), Places(out), list[str]()
    briefs = places.cache().read_all(places.verdicts, unread.append)
    for line in unread:
        printed(f"not read: {line}", stderr=True)
    found = paper_table(table_models(briefs, models, names, columns, places.cache()), columns, typed_command())
    printed(as_markdown(found))
    return write_paper_table(found, ignored(places.local) / "tables" / plain_name(name, "table name"))


def _published(out: Path, publish: Names, withdraw: Names) -> "Updated":
    """Publish and withdraw, then draw what is published."""
    from robustbench_rkhs.reports import publication
    from robustbench_rkhs.verdicts import Published

    if not publish and not withdraw and not Published(out / "verdicts").listed():
        raise UserError(f"nothing is published in {out}: rkhs-report --publish MODEL publishes its strongest table")
    for line in [*publication.withdraw(out, withdraw), *publication.publish(out, publish)]:
        printed(line)
    return publication.draw_published(out)


FOLDERS = 3
"""Folders that are named."""


def _in_short(paths: Sequence[Path]) -> str:
    """One file by its path; for several, their number in each folder."""
    if len(paths) == 1:
        return str(paths[0])
    folders = [path.parent for path in paths]
    counts = {folder: folders.count(folder) for folder in dict.fromkeys(folders)}
    told = [f"{counted(count, 'file')} in {folder}" for folder, count in counts.items()]
    more = f", and {sum(counts.values()) - sum(list(counts.values())[:FOLDERS])} in {len(told) - FOLDERS} more folders"
    return ", ".join(told[:FOLDERS]) + (more if len(told) > FOLDERS else "") or "none"


main = command(_report, quick=True)
