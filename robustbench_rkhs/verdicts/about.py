"""What an evaluation is about: model, data, threat model, protocol, and what was noticed on the way. Typed and frozen."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from robustbench_rkhs.nodes.node import Node, UserError
from robustbench_rkhs.nodes.parsing import parse
from robustbench_rkhs.nodes.threat_model import Box, Norm


@dataclass(frozen=True)
class Breach:
    """A certified image that an attack broke within its certified radius."""

    index: int
    attack: str
    distance: float
    certified: float
    """The radius that was claimed."""
    cause: str
    """`proof error`: the float64 network errs too, so the certificate is false; `arithmetic`: only the evaluated one errs."""

    def __str__(self) -> str:
        claim = f"image {self.index}: certified up to {self.certified:.6g}"
        return f"{claim}, broken by {self.attack} at {self.distance:.6g} ({self.cause})"


@dataclass(frozen=True)
class Diagnosis:
    """One check of whether attacks can be believed: what was measured, from where on it counts as a fault, and both in words."""

    name: str
    tripped: bool
    value: float
    """What was measured."""
    threshold: float
    """It trips above this (and at no fewer than two images)."""
    words: str
    """One sentence with the numbers."""
    cost: float
    """Forward and backward passes, the mean over the images of the sample."""
    eps: float | None = None
    """The radius it was made at."""
    twin: str | None = None
    """Key of the undefended network, where the check compares with one."""


@dataclass(frozen=True)
class Rechecked:
    """Survivals inferred from a larger eps that were attacked at their own eps after all."""

    pairs: int = 0
    """Of an image and an eps."""
    fell: int = 0


class About(Node):
    """What one table of verdicts is about."""

    model: str
    weights: str
    """Digest of the weights. For information: the same weights in another network are another model."""
    data: str
    norm: Norm
    box: Box
    epsilons: tuple[float, ...]
    """Asked-for radii, ascending."""
    protocol: tuple[str, ...]
    """Labels of the attacks that an image must withstand."""
    certificates: tuple[str, ...] = ()
    """Labels of the certificates, in their order."""
    samples: int = 0
    seed: int = 0
    device: str = ""
    date: str = ""
    command: str = ""
    versions: dict[str, str] = Field({})
    data_digest: str = ""
    key: str = ""
    """Which function the model is: digest of its structure, tensors, normalisation and smoothing."""
    logits: tuple[tuple[float, ...], ...] = ()
    """Its float64 logits on eight fixed images; empty where it takes none."""
    job: str = ""
    """Digest of all that the evaluation depends on: the table's file is named after it."""
    submitted: str = ""
    """When it came through the gate (UTC); empty of one's own."""
    pixels: int | None = None
    """Numbers of an image."""
    settings: dict[str, Any] = Field({})
    """The recipe, as JSON."""
    complete: bool = True
    """Whether everything that was due ran."""
    incomplete_because: Literal["budget", "interrupted"] | None = None
    """What ended it before that."""
    refused: tuple[str, ...] = ()
    """Why certificates were refused, or failed."""
    left_out: tuple[str, ...] = ()
    """Certificates that a pilot left out, and why."""
    failed: tuple[str, ...] = ()
    """Attacks that ended in an error, with the error."""
    breaches: tuple[Breach, ...] = ()
    rechecked: Rechecked = Rechecked()
    budget: float | None = None
    """Seconds the evaluation was given."""
    marks: tuple[str, ...] = ()
    """Names of the diagnoses that tripped; `undiagnosed` where none was run."""
    diagnostics: tuple[Diagnosis, ...] = ()
    outside: dict[str, int] = Field({})
    """Of each attack, how many images it returned outside box or ball."""
    twin: str | None = None
    """Key of the undefended network whose adversarial images were tried."""
    smoothed: str | None = None
    """Settings of the vote, of a smoothed classifier."""
    file_sha256: str | None = None
    """Of submitted adversarial images: digest of the file they came in."""
    header: dict[str, Any] | None = None
    """Of submitted adversarial images: what their file says of itself."""

    @classmethod
    def read(cls, stored: Mapping[str, Any], source: str) -> "About":
        """From the JSON of a file; fields that this version does not know, or that say nothing (null), are left out.

        Raises UserError in one line.
        """
        fields = cls.model_fields
        said = {key: value for key, value in stored.items() if key in fields}
        known = {key: value for key, value in said.items() if value is not None or fields[key].default is None}
        missing = [key for key, field in cls.model_fields.items() if field.is_required() and key not in known]
        if missing:
            raise UserError(f"{source}: the evaluation does not say its {', '.join(missing)}")
        about: About = parse(cls, known, source)
        return about

    def plain(self) -> dict[str, Any]:
        """As JSON takes it: the fields that were given, by name."""
        said = self.model_dump(exclude_unset=True)
        if "diagnostics" in said:
            said["diagnostics"] = [{key: value for key, value in one.items() if value is not None} for one in said["diagnostics"]]
        return said

    def but(self, **fields: Any) -> "About":
        """The same with other values of these fields. Raises UserError where one is unknown or of the wrong type."""
        about: About = parse(About, self.plain() | fields, "about")
        return about
