"""The models of the site: one for each function and name, with its strongest evaluation of every data set, norm and box."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from robustbench_rkhs.nodes.names import file_word
from robustbench_rkhs.reports.entries import best_of
from robustbench_rkhs.verdicts import About, Brief, Evaluation, diagnosed, functions, pooled, stale
from robustbench_rkhs.verdicts.axes import domain

Identity = tuple[str, str]
"""A model's name, and the key of its function."""


def identity(about: About) -> Identity:
    """What tells models apart; tables without a key by their weights."""
    return about.model, about.key or about.weights


@dataclass(frozen=True)
class SiteDomain:
    """The strongest evaluation of a model on one data set, norm and box."""

    brief: Brief
    kin: tuple[Brief, ...]
    """The other evaluations of the same function, whose adversarial images count."""
    stem: str
    """Name of its files in data/."""

    @property
    def title(self) -> str:
        return domain(self.brief.about)

    @property
    def place(self) -> str:
        """Equal for evaluations that may be compared image by image: same data, norm and box."""
        about = self.brief.about
        return "/".join([about.data, about.data_digest[:12], about.norm, about.box])

    def evaluation(self) -> Evaluation:
        """The table, with the adversarial images of all evaluations of the function. Raises UserError where a file is gone."""
        return pooled(self.brief.evaluation(), [one.evaluation() for one in self.kin])


@dataclass(frozen=True)
class SiteModel:
    """One model of the site."""

    name: str
    key: str
    slug: str
    """Name of its page."""
    domains: tuple[SiteDomain, ...]
    history: tuple[Brief, ...]
    """Every evaluation of its function, under any name; the latest first."""
    namesake: bool
    """Whether another function of the site has the same name."""

    @property
    def title(self) -> str:
        """Its name, with the first digits of the key where another function has it, too; as on boards."""
        return f"{self.name} ({self.key[:6]})" if self.namesake else self.name


def site_models(briefs: Sequence[Brief]) -> dict[Identity, SiteModel]:
    """The models of these tables, by identity, in the order of their names."""
    kin: dict[int, list[Brief]] = {}
    for number, one in zip(functions(briefs), briefs, strict=True):
        kin.setdefault(number, []).append(one)
    own: dict[Identity, list[Brief]] = {}
    family: dict[Identity, list[Brief]] = {}
    for members in kin.values():
        for one in members:
            if one.about.epsilons:
                own.setdefault(identity(one.about), []).append(one)
                family[identity(one.about)] = members
    slugs, names = _slugs(sorted(own)), Counter(name for name, _ in own)
    return {who: _model(who, slugs[who], own[who], family[who], names[who[0]] > 1) for who in sorted(own)}


def _model(who: Identity, slug: str, own: Sequence[Brief], family: Sequence[Brief], namesake: bool) -> SiteModel:
    places: dict[tuple[str, ...], list[Brief]] = {}
    for one in own:
        places.setdefault((one.about.data, one.about.data_digest, one.about.norm, one.about.box), []).append(one)
    domains, taken = [], set[str]()
    for place, members in sorted(places.items()):
        best = _shown(members)
        words = [slug, file_word(place[0]), place[2], *(["nobox"] if place[3] == "none" else [])]
        stem = "-".join(words)
        stem = stem if stem not in taken else f"{stem}-{place[1][:6]}"
        taken.add(stem)
        domains.append(SiteDomain(best, tuple(one for one in family if one is not best), stem))
    history = sorted(family, key=lambda one: (one.about.date, one.content), reverse=True)
    return SiteModel(who[0], who[1], slug, tuple(domains), tuple(history), namesake)


def _shown(members: Sequence[Brief]) -> Brief:
    """The evaluation of a page: `best_of` these, but one that went through the same at more radii, where there is such."""
    best = best_of(members)
    like = [one for one in members if (one.sample, one.attacks, one.sealed) == (best.sample, best.attacks, best.sealed)]
    like = [one for one in like if one.about.complete == best.about.complete and bool(stale(one)) == bool(stale(best))]
    like = [
        one for one in like if diagnosed(one) == diagnosed(best) and set(one.about.certificates) >= set(best.about.certificates)
    ]
    wider = [one for one in like if set(one.about.epsilons) > set(best.about.epsilons)]
    return best_of(wider) if wider and not best.about.submitted else best


def _slugs(who: Sequence[Identity]) -> dict[Identity, str]:
    """Distinct file names, also where file systems ignore case: with digits of the key where names repeat."""
    plain = [file_word(name).lower() for name, _ in who]
    return {
        one: file_word(one[0]) if plain.count(word) == 1 else f"{file_word(one[0])}-{file_word(one[1][:12])}"
        for one, word in zip(who, plain, strict=True)
    }
