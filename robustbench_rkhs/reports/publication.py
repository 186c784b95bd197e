"""Publishing: which tables git sees, and the figures, tables and leaderboard of those alone."""

from collections.abc import Sequence
from pathlib import Path

from robustbench_rkhs.nodes.counts import counted
from robustbench_rkhs.nodes.node import UserError, did_you_mean
from robustbench_rkhs.reports.claimed import read_claims
from robustbench_rkhs.reports.drawn import Drawn
from robustbench_rkhs.reports.entries import best_of
from robustbench_rkhs.reports.leaderboard import write_leaderboard
from robustbench_rkhs.reports.other_kinds import is_other, publish_other
from robustbench_rkhs.reports.own_files import draw_own, merge_into, stems
from robustbench_rkhs.reports.places import Places
from robustbench_rkhs.reports.together import draw_together
from robustbench_rkhs.reports.update import Updated
from robustbench_rkhs.runtime.events import PhaseStarted, emit
from robustbench_rkhs.runtime.steps import stepped
from robustbench_rkhs.verdicts import Brief, Published, called, unfit

WORDS = {"epsilons": "eps", "protocol": "attacks", "certificates": "certificates"}
"""What a table has to have to replace a published one, in words."""


def publish(out: Path, names: Sequence[str]) -> list[str]:
    """Lets git see the strongest table of each model for its data, norm and box, what was submitted against it, and its owner.

    names: models, or MODEL/FILE for one table of a model, or KIND/FILE for another report (`publish_other`). A published table
    is replaced only by one that has at least its images, eps, attacks and certificates. Returns a line on each decision.
    Raises UserError, before anything is changed, for a name without a complete, sound table, and for one whose published table
    is stronger in anything.
    """
    places = Places(out)
    marked, lines, changes = Published(places.verdicts), list[str](), list[tuple[Brief, Brief | None]]()
    others, names = [name for name in names if is_other(name)], [name for name in names if not is_other(name)]
    for name in names:
        domains: dict[tuple[str, ...], list[Brief]] = {}
        for one in _named(places, name):
            domains.setdefault((one.about.data, one.about.data_digest, one.about.norm, one.about.box), []).append(one)
        for members in domains.values():
            new, old = best_of(members), _published_beside(places, members[0])
            if old is not None and old.path == new.path:
                lines += [f"{new.path} is published already"]
            elif old is not None and (lacks := _lacks(new, old)):
                raise UserError(
                    f"{new.path} is weaker than the published {old.path}: {lacks}; nothing is changed "
                    f"(rkhs-report --withdraw {old.about.model} withdraws it)"
                )
            else:
                changes.append((new, old))
    for new, old in changes:
        if new.path is None:  # a brief that was read has one
            continue
        marked.add(new.path)
        lines += [f"published: {new.path} ({counted(new.images, 'image')})"]
        if old is not None and old.path is not None:
            marked.remove(old.path)
            lines += [f"withdrawn: {old.path} ({counted(old.images, 'image')}); where git tracks it: git rm --cached {old.path}"]
    for model in sorted({name.partition("/")[0] for name in names}):
        submitted = Published(places.submitted)
        for path in sorted((places.submitted / model).glob("*.parquet")):
            if path not in submitted.paths():
                submitted.add(path)
                lines += [f"published: {path}"]
        owned, owner = Published(places.owners), places.owners / model
        if owner.is_file() and owner not in owned.paths():
            owned.add(owner)
            lines += [f"published: {owner}"]
    return lines + [line for name in others for line in publish_other(places, name)]


def withdraw(out: Path, names: Sequence[str]) -> list[str]:
    """Lets git ignore the published tables of these models, or MODEL/FILE, again; the files stay. Raises UserError for others."""
    places, lines = Places(out), list[str]()
    for name in names:
        found = 0
        for marked in (Published(places.verdicts), Published(places.submitted)):
            for path in marked.listed():
                if name in (path.parent.name, f"{path.parent.name}/{path.name}", f"{path.parent.name}/{path.stem}"):
                    marked.remove(path)
                    found += 1
                    lines += [f"withdrawn: {path}; where git tracks it: git rm --cached {path}"]
        if not found:
            known = {path.parent.name for path in Published(places.verdicts).listed()}
            raise UserError(f"{name!r} has no published table; {did_you_mean(name, known)}")
    return lines


def draw_published(out: Path) -> Updated:
    """The figures, tables and leaderboard of the published tables, in OUT itself; files of what was withdrawn are removed.

    Files whose inputs and code did not change are left as they are. Raises UserError where files cannot be written, and, before
    anything is changed, where a published table is missing or cannot be read.
    """
    places, found = Places(out), Updated()
    emit(PhaseStarted(phase="reading verdicts"))
    cache = places.cache()
    marked, against = set(Published(places.verdicts).listed()), set(Published(places.submitted).listed())
    for path in sorted(marked | against):
        if not path.is_file():
            raise UserError(f"the published table {path} is missing: restore it, or rkhs-report --withdraw {path.parent.name}")
    briefs = [one for one in cache.read_all(places.verdicts, found.unread.append) if one.path in marked]
    submitted = [one for one in cache.read_all(places.submitted, found.unread.append) if one.path in against]
    damaged = [line for line in found.unread if any(str(path) in line for path in marked | against)]
    if damaged:
        raise UserError(f"a published table cannot be read, and nothing is drawn: {damaged[0]}")
    found.unread = []
    found.tables, drawn = len(briefs), Drawn(out)
    with stepped("drawing", "", len(briefs), "evaluations") as step:
        for one, name in zip(briefs, stems(briefs), strict=True):
            merge_into(found.written, draw_own(one, name, drawn))
            step.add()
            step.tell(detail=name)
    emit(PhaseStarted(phase="drawing evaluations together, and the leaderboard"))
    together, found.apart = draw_together(briefs, drawn)
    merge_into(found.written, together)
    drawn.save(others=False)
    found.written["leaderboard"] = write_leaderboard(
        [*briefs, *submitted], out, found.unread, cache, claims=read_claims(places.claims, found.unread.append)
    )
    return found


def _named(places: Places, name: str) -> list[Brief]:
    """The tables of a model that may be published. Raises UserError where there are none, or they can't be read."""
    model, _, file = name.partition("/")
    unread: list[str] = []
    found = places.cache().read_all(places.verdicts / model, unread.append) if _plain(model) else []
    if file:
        found = [one for one in found if one.path is not None and file in (one.path.name, one.path.stem)]
    if not found:
        known = {path.name for path in places.verdicts.glob("*") if path.is_dir()}
        raise UserError(unread[0] if unread else f"no table of {name!r} in {places.verdicts}; {did_you_mean(name, known)}")
    sound = [one for one in found if not unfit(one)]
    if not sound:
        why = "; ".join(f"{called(one)}: {unfit(one)}" for one in found)
        raise UserError(f"{name!r} has no table that can be published: {why}")
    return sound


def _plain(model: str) -> bool:
    return bool(model) and model not in (".", "..")


def _published_beside(places: Places, one: Brief) -> Brief | None:
    """The published table of the same model, data, norm and box, if there is one."""
    cache = places.cache()
    for path in Published(places.verdicts).paths():
        if one.path is not None and path.parent == one.path.parent:
            other = cache.read(path)
            if _domain(other) == _domain(one):
                return other
    return None


def _domain(one: Brief) -> tuple[str, ...]:
    return one.about.data, one.about.data_digest, one.about.norm, one.about.box


def _lacks(new: Brief, old: Brief) -> str:
    """What the old table has that the new one has not, in words; empty where the new one is at least as strong."""
    lacks = [f"{new.images} images of {old.images}"] if new.images < old.images else []
    for what, word in WORDS.items():
        missing = [one for one in getattr(old.about, what) if one not in getattr(new.about, what)]
        shown = ", ".join(f"{one:g}" if isinstance(one, float) else one for one in missing)
        lacks += [f"without {word} {shown}"] if missing else []
    return "; ".join(lacks)
