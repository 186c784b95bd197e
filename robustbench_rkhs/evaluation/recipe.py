"""EvalRecipe: every setting of an evaluation."""

from collections.abc import Mapping
from typing import Any, get_args

from pydantic import Field, model_validator

from robustbench_rkhs.attacks import AnyAttack
from robustbench_rkhs.attacks.foolbox import Method as FoolboxMethod
from robustbench_rkhs.certificates import Portfolio, certificate_names
from robustbench_rkhs.evaluation.contradictions import refuse_contradiction
from robustbench_rkhs.evaluation.settings import EvalSettings
from robustbench_rkhs.nodes.code_names import announced, is_code_name
from robustbench_rkhs.nodes.node import UserError, did_you_mean
from robustbench_rkhs.nodes.one_of import names_of
from robustbench_rkhs.nodes.parsing import with_fields


class EvalRecipe(EvalSettings):
    """How a model is evaluated: norm, radii, attacks, certificates, images."""

    attacks: tuple[AnyAttack, ...] = ()
    """The protocol: minimal-norm attacks, then the others, each on the images still open. Empty: the attacks of `effort`."""
    certificates: Portfolio = Field(("portfolio",), validate_default=True)
    """Certificates, each on the images that those before left open; all that are named run, none where empty. `portfolio`: the
    default ones, of which a pilot of 8 images leaves out those that settle nothing there beyond the others."""

    @model_validator(mode="after")
    def _effort_or_attacks(self) -> "EvalRecipe":
        if self.attacks and self.effort != "standard":
            raise ValueError(f"effort {self.effort!r} chooses the attacks itself: leave out the attacks, or the effort")
        return self

    @model_validator(mode="after")
    def _workers_or_threads(self) -> "EvalRecipe":
        if self.workers is not None and self.threads not in (None, 1):
            raise ValueError(f"workers compute on one thread each: leave out threads {self.threads}, or workers")
        return self

    @model_validator(mode="after")
    def _agree(self) -> "EvalRecipe":
        for attack in self.attacks:
            refuse_contradiction(attack, self.norm, self.eps, self.seed)
        for certificate in self.certificates:
            refuse_contradiction(certificate, self.norm, self.eps)
        return self


def typed_certificates(settings: Mapping[str, Any]) -> list[Any]:
    """The certificates of stored settings as they were typed: `portfolio` where they are the default ones. For `EvalRecipe`."""
    stored: list[Any] = list(settings.get("certificates") or [])
    usual = EvalRecipe(**{key: settings[key] for key in ("norm", "eps", "effort") if key in settings})
    return ["portfolio"] if stored == usual.model_dump(mode="json")["certificates"] else stored


ATTACKS = set(names_of(AnyAttack))
"""Names of attacks."""
FOOLBOX = set(get_args(FoolboxMethod)) - ATTACKS
"""Names that stand for an attack of foolbox, where none of ours has that name."""


def certificate_from(text: str) -> Any:
    """`NAME` or `NAME:field=value,...` as typed after --certify; `portfolio` and your own `package.module:Name` stay words."""
    name, _, rest = text.partition(":")
    if name not in certificate_names() and is_code_name(text):
        return text
    known = ["portfolio", "none", *certificate_names(), *announced("certificates")]
    if name not in known or (rest and name in known[:2]):
        raise UserError(f"unknown certificate {text!r}; {did_you_mean(name, known, listing='rkhs-list certificates')}")
    return with_fields({"name": name}, rest, f"certificate {text!r}") if rest else name


def attack_from(text: str) -> Any:
    """`NAME` or `NAME:field=value,...` as typed after --attack, as a mapping for a recipe.

    A library attack's own name stands for it, where we have none of that name: `cw` for `foolbox:attack=cw`. Your own attack is
    `package.module:Name` or `file.py:Name`, with `:field=value,...` behind it. Raises UserError with a suggestion.
    """
    name, _, rest = text.partition(":")
    if name not in ATTACKS | FOOLBOX and is_code_name(text):
        return text
    stored: dict[str, Any] = {"name": "foolbox", "attack": name} if name in FOOLBOX else {"name": name}
    known = {*ATTACKS, *FOOLBOX, *announced("attacks")}
    if name not in known:
        raise UserError(f"unknown attack {name!r}; {did_you_mean(name, known, listing='rkhs-list attacks')}")
    return with_fields(stored, rest, f"attack {text!r}")
