"""Building the site: what changed since the last time is made again, the rest stays as it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.reports.claimed import read_claims
from robustbench_rkhs.reports.drawn import Drawn
from robustbench_rkhs.reports.entries import board
from robustbench_rkhs.reports.places import Places
from robustbench_rkhs.runtime.collection import seldom
from robustbench_rkhs.runtime.events import PhaseStarted, emit
from robustbench_rkhs.runtime.steps import stepped
from robustbench_rkhs.site.assets import versions, write_assets
from robustbench_rkhs.site.board_files import write_board
from robustbench_rkhs.site.boards import boards
from robustbench_rkhs.site.compare_page import write_compare, write_specs
from robustbench_rkhs.site.model_files import FilesOf, ModelFiles
from robustbench_rkhs.site.model_page import write_model
from robustbench_rkhs.site.on_boards import OnBoard, on_boards
from robustbench_rkhs.site.pages import site_digest, write_page
from robustbench_rkhs.site.publication import publish
from robustbench_rkhs.site.side_by_side import MANY, side_by_side, staying
from robustbench_rkhs.site.site_models import Identity, SiteModel, site_models
from robustbench_rkhs.site.stills import drawn_beside
from robustbench_rkhs.site.text_pages import methods_digest, trust_digest, write_glossary, write_methods, write_trust
from robustbench_rkhs.site.training_facts import Shelf, TrainingFacts
from robustbench_rkhs.verdicts import Brief, BriefCache, Published
from robustbench_rkhs.verdicts.remembered import forgetting, remembering
from robustbench_rkhs.verdicts.store import table_paths

FEW = 4
"""New tables that stay in memory from when they are summed up until their pages are made."""
SAVED = 300
"""Files after which the record of what was made is saved."""


@dataclass
class SiteBuilt:
    """What a build found and wrote."""

    folder: Path
    boards: int = 0
    models: int = 0
    files: list[Path] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    """A line on each table that could not be read."""


def build_site(out: Path, folder: Path) -> SiteBuilt:
    """The site in `folder`, from all tables in OUT/verdicts and OUT/submitted.

    Pages whose tables and code did not change are left as they are; those of models that are gone are removed. Nothing outside
    `folder` and OUT/local is written. Raises UserError where a file cannot be
    written. Cost: 1 ms per table that is known, 0.5 s for a new one, 2 s for the shared files at first.
    """
    places, found = Places(out), SiteBuilt(folder)
    emit(PhaseStarted(phase="reading verdicts"))
    cache = places.cache()
    with seldom(), staying(), drawn_beside() as begin, remembering():
        if not _sum_up(places, cache):
            cache.meets, cache.holding = begin, FEW
        briefs = cache.read_all(places.verdicts, found.unread.append)
        briefs += cache.read_all(places.submitted, found.unread.append)
        return _built(places, briefs, cache, found)


def _built(places: Places, briefs: list[Brief], cache: BriefCache, found: SiteBuilt) -> SiteBuilt:
    """The site of these tables."""
    out, folder = places.out, found.folder
    models = site_models(briefs)
    shelf = Shelf(out)
    facts = {who: shelf.facts(model.domains[0].brief.about) for who, model in models.items()}
    drawn = Drawn(folder)
    libraries = [site_digest(), *versions(), out.absolute().name]  # commands on the pages name OUT
    found.files += drawn.once("assets", folder / "assets", libraries, write_assets)
    claims, published = read_claims(places.claims, found.unread.append), set(Published(places.verdicts).paths())
    ranked = boards(board(briefs, cache), models, facts, claims, published, cache.folder)
    with stepped("pages", "", len(ranked), "boards") as step:
        for one in ranked:
            stem = folder / "boards" / one.slug
            found.files += drawn.once("board", stem, [*libraries, *one.contents], partial(write_board, one))
            step.add()
            step.tell(detail=one.title)
    where, files = on_boards(ranked, models), FilesOf(out)
    found.files += _write_models(models, facts, files, where, drawn, libraries)
    found.files += drawn.once("methods", folder / "methods", [*libraries, methods_digest()], lambda _: write_methods(folder))
    found.files += drawn.once("trust", folder / "trust", [*libraries, trust_digest(out)], lambda _: write_trust(folder, out))
    found.files += write_glossary(folder)
    norms = sorted({one.section[2] for one in ranked})
    found.files += drawn.once("specs", folder / "data" / "specs.js", [*libraries, *norms], partial(write_specs, norms=norms))
    found.files += write_compare(folder, models, facts, ranked)
    values = {"boards": ranked, "models": list(models.values()), "unread": [line.replace(f"{out}/", "") for line in found.unread]}
    found.files.append(write_page(folder / "index.html", "index.html", "", title="Boards", **values))
    publish(folder, found.files)
    drawn.save(others=False)
    found.boards, found.models = len(ranked), len(models)
    return found


def _sum_up(places: Places, cache: BriefCache) -> bool:
    """Sum up tables that are new, by several processes where there are many; whether there were."""
    if cache.unknown(places.verdicts) < MANY:
        return False
    for _ in side_by_side(partial(_summed_up, cache), table_paths(places.verdicts)):
        pass
    return True


def _summed_up(cache: BriefCache, path: Path) -> None:
    try:
        cache.read(path)
    except UserError:
        pass  # it is named when all are read


@dataclass(frozen=True)
class _Task:
    """A model whose page is made."""

    model: SiteModel
    facts: TrainingFacts
    files: ModelFiles
    boards: Mapping[str, list[OnBoard]]
    stem: Path

    def done(self) -> list[Path]:
        return write_model(self.model, self.facts, self.files, self.boards, self.stem)

    def done_alone(self) -> list[Path]:
        """The same, of which nothing stays in memory."""
        with forgetting():
            return self.done()


def _write_models(
    models: Mapping[Identity, SiteModel],
    facts: Mapping[Identity, TrainingFacts],
    files: FilesOf,
    where: Mapping[Identity, dict[str, list[OnBoard]]],
    drawn: Drawn,
    libraries: Sequence[str],
) -> list[Path]:
    """The pages of all models; those whose tables did not change stay."""
    written, tasks, made_of = list[Path](), list[_Task](), list[list[str]]()
    with stepped("pages", "", len(models), "models") as step:
        for who, model in models.items():
            own, stem = files.of(model), drawn.folder / "models" / model.slug
            contents = [one.content for one in model.history]
            inputs = [*libraries, model.title, *contents, facts[who].digest, *own.digests, repr(where[who])]
            if (known := drawn.known("model", stem, inputs)) is not None:
                written += known
                step.add()
            else:
                tasks.append(_Task(model, facts[who], own, where[who], stem))
                made_of.append(inputs)
        done = side_by_side(_Task.done if len(tasks) <= FEW else _Task.done_alone, tasks)
        for task, inputs, paths in zip(tasks, made_of, done, strict=True):
            written += drawn.keep("model", task.stem, inputs, paths)
            if len(written) % SAVED < len(paths):
                drawn.save(others=True)  # an interrupted build goes on here
            step.add()
            step.tell(detail=task.model.name)
    return written
