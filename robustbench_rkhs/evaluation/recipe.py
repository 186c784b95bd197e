"""EvalRecipe: everything that decides how a model is evaluated."""

from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Field, model_validator

from robustbench_rkhs.attacks import AnyAttack
from robustbench_rkhs.attacks.efforts import Effort
from robustbench_rkhs.attacks.foolbox import Method as FoolboxMethod
from robustbench_rkhs.certificates import Portfolio, certificate_names
from robustbench_rkhs.evaluation.contradictions import refuse_contradiction
from robustbench_rkhs.nodes.code_names import announced, is_code_name
from robustbench_rkhs.nodes.node import Node, Real, Seconds, UserError, did_you_mean
from robustbench_rkhs.nodes.one_of import names_of
from robustbench_rkhs.nodes.parsing import with_fields
from robustbench_rkhs.nodes.threat_model import Norm, norm_named


class EvalRecipe(Node):
    """How a model is evaluated: norm, radii, attacks, certificates, images."""

    norm: Annotated[Norm, BeforeValidator(norm_named)] = "l2"
    """Distance the radii are measured in."""
    eps: tuple[Annotated[Real, Field(ge=0)], ...]
    """Asked-for radii, in pixels of [0, 1]."""
    attacks: tuple[AnyAttack, ...] = ()
    """The protocol: minimal-norm attacks, then the others, each on the images still open. Empty: the attacks of `effort`."""
    effort: Effort = "standard"
    """The protocol where no attack is named. quick: the union of the minimal-norm attacks. standard: cheap minimal-norm attacks,
    then the full ensemble at the largest eps that is open. adaptive: the same with what still pays of the ensemble."""
    certificates: Portfolio = Field(("portfolio",), validate_default=True)
    """Certificates, cheapest first, each on the images that those before left open; `portfolio` is all of them, empty none."""
    certify_seconds: Annotated[Real, Field(gt=0)] | None = None
    """Time limit of each certificate; images it does not reach are marked `timeout`. None: as long as it takes."""
    samples: int | None = Field(None, ge=1)
    """Test images, a seeded stratified subset; all where not given."""
    seed: int = Field(0, ge=0)
    """Which images, and every random draw of the attacks."""
    block: int = Field(64, ge=1)
    """Images a block, the unit of resuming: bounds the memory. Random draws of library attacks depend on it."""
    workers: int = Field(1, ge=1)
    """Processes that take a block each of our own attacks, on a CPU, one thread each: the table is that of one process on one
    thread. Not shared: attacks of libraries, and effort adaptive, which learns from image to image."""
    budget: Seconds | None = None
    """Seconds (or 90s, 10min, 2h) after which no further part is begun: certificates stop at half of it, attacks at its end (a
    block of a library's attack and the diagnosis are not cut). Images not reached are untested. It changes nothing else, and the
    same evaluation without it goes on from there."""
    rechecked: int = Field(8, ge=0)
    """Of the survivals that are inferred from a larger eps, how many are attacked at their own eps after all; the share that falls
    is reported. Cost: at most so many runs of the fixed-budget attacks, each about 8,800 passes of the ensemble where the image
    stands."""
    diagnostics: bool = True
    """Check on 64 images (16 where the effort is quick) whether the attacks can be believed, mark the model where not, and attack
    its survivors further. Cost: at most 1,550 passes an image of the sample. Without: the result is marked undiagnosed."""

    @model_validator(mode="after")
    def _effort_or_attacks(self) -> "EvalRecipe":
        if self.attacks and self.effort != "standard":
            raise ValueError(f"effort {self.effort!r} chooses the attacks itself: leave out the attacks, or the effort")
        return self

    @model_validator(mode="after")
    def _agree(self) -> "EvalRecipe":
        for attack in self.attacks:
            refuse_contradiction(attack, self.norm, self.eps, self.seed)
        for certificate in self.certificates:
            refuse_contradiction(certificate, self.norm, self.eps)
        return self


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
