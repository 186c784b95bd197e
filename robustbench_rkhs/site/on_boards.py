"""Where a model stands: what its page says of the boards that name it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from robustbench_rkhs.site.boards import Board
from robustbench_rkhs.site.site_models import Identity, SiteModel


@dataclass(frozen=True)
class OnBoard:
    """A board that names a model. Not the board itself: it goes to the process that makes the page."""

    slug: str
    eps: str
    """As it was typed."""
    trial: bool
    unranked: str
    """Why the model is not ranked there; empty where it is."""

    @property
    def refused(self) -> bool:
        """Whether its accuracies do not hold: an attack contradicts a certificate, or its answers are no function of the image."""
        return self.unranked.startswith("refused,")


def on_boards(ranked: Sequence[Board], models: Mapping[Identity, SiteModel]) -> dict[Identity, dict[str, list[OnBoard]]]:
    """By model, then by the stem of its domain: the boards that name it."""
    found: dict[Identity, dict[str, list[OnBoard]]] = {who: {} for who in models}
    slugs = {model.slug: who for who, model in models.items()}
    for one in ranked:
        why = one.unranked
        for row in (*one.rows, *one.apart, *one.aside):
            if (who := slugs.get(page := row["page"])) is None:
                continue
            for domain in models[who].domains:
                about = domain.brief.about
                if (about.data, about.data_digest, about.norm, about.box) == one.section[:4]:
                    here = OnBoard(one.slug, one.eps, one.trial, why.get(page, ""))
                    found[who].setdefault(domain.stem, []).append(here)
    return found
