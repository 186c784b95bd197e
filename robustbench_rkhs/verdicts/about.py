"""The metadata of an evaluation: model, data, threat model, protocol, and notes from the run. Typed and frozen."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from pydantic import Field

from robustbench_rkhs.nodes.node import Node, UserError
from robustbench_rkhs.nodes.parsing import parse
from robustbench_rkhs.nodes.radius_text import radius_words
from robustbench_rkhs.nodes.threat_model import Box, Norm


@dataclass(frozen=True)
class Breach:
    """A certified image that an attack broke within its certified radius."""

    index: int
    attack: str
    distance: float
    certified: float
    """The certified radius."""
    cause: str
    """`proof error`: the float64 network errs too, so the certificate is false; `arithmetic`: only the evaluated one errs."""

    def __str__(self) -> str:
        claim = f"image {self.index}: certified up to {self.certified:.6g}"
        return f"{claim}, broken by {self.attack} at {self.distance:.6g} ({self.cause})"


@dataclass(frozen=True)
class Diagnosis:
    """One check for gradient masking: the measured value, the threshold, and a sentence on both."""

    name: str
    tripped: bool
    value: float
    """The measured value."""
    threshold: float
    """The check fails above this (and for at least two images)."""
    words: str
    """One sentence with the numbers."""
    cost: float
    """Forward and backward passes, averaged over the images of the sample."""
    eps: float | None = None
    """The radius of the check."""
    twin: str | None = None
    """Key of the undefended network, if the check compares with one."""


@dataclass(frozen=True)
class Rechecked:
    """Survivals inferred from a larger eps that were also attacked at their own eps."""

    pairs: int = 0
    """Number of pairs of an image and an eps."""
    fell: int = 0


class About(Node):
    """The metadata of one table of verdicts."""

    model: str
    weights: str
    """Digest of the weights, for information: the same weights in another network are another model."""
    data: str
    norm: Norm
    box: Box
    epsilons: tuple[float, ...]
    """Requested radii, ascending."""
    eps_text: tuple[str, ...] = ()
    """The same as they were typed; empty in older tables."""
    protocol: tuple[str, ...]
    """Labels of the attacks that an image must withstand."""
    certificates: tuple[str, ...] = ()
    """Labels of the certificates, in their order."""
    samples: int = 0
    seed: int = 0
    device: str = ""
    threads: str = ""
    """How many threads computed on a CPU, and why so many."""
    date: str = ""
    command: str = ""
    versions: dict[str, str] = Field({})
    evaluator: dict[str, str] = Field({})
    """Digests of the code that made it, by part (`verdicts/provenance.py`); empty in older tables."""
    data_digest: str = ""
    key: str = ""
    """Key of the model's function: digest of its structure, tensors, normalisation and smoothing."""
    logits: tuple[tuple[float, ...], ...] = ()
    """Its float64 logits on eight fixed images; empty if it does not take them."""
    job: str = ""
    """Digest of everything that the evaluation depends on; part of the file name."""
    submitted: str = ""
    """Time of its acceptance as a submission (UTC); empty for own evaluations."""
    pixels: int | None = None
    """Pixels per image, over all channels."""
    settings: dict[str, Any] = Field({})
    """The recipe, as JSON."""
    complete: bool = True
    """Whether the evaluation is complete."""
    incomplete_because: Literal["budget", "interrupted", "killed"] | None = None
    """The reason if it is not complete: the time budget, the keyboard, or jobs that no worker survived."""
    refused: tuple[str, ...] = ()
    """The reasons why certificates were refused or failed."""
    left_out: tuple[str, ...] = ()
    """Certificates that were left out after a pilot, with reasons."""
    curve: bool | None = None
    """Whether certified radii were searched for up to the largest eps, or stopped at requested ones; None: older tables."""
    failed: tuple[str, ...] = ()
    """Attacks that ended in an error, with the error."""
    breaches: tuple[Breach, ...] = ()
    rechecked: Rechecked = Rechecked()
    budget: float | None = None
    """The time budget in seconds."""
    marks: tuple[str, ...] = ()
    """Names of the failed diagnoses; `undiagnosed` if none was run."""
    diagnostics: tuple[Diagnosis, ...] = ()
    outside: dict[str, int] = Field({})
    """Number of images that each attack returned outside box or ball."""
    twin: str | None = None
    """Key of the undefended network whose adversarial images were tried."""
    smoothed: str | None = None
    """Settings of a smoothed classifier's vote."""
    file_sha256: str | None = None
    """For submitted adversarial images: digest of their file."""
    header: dict[str, Any] | None = None
    """For submitted adversarial images: the header of their file."""

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

    def words(self, eps: float) -> str:
        """A radius as it was typed, such as `8/255`."""
        return radius_words(eps, self.eps_text)

    def plain(self) -> dict[str, Any]:
        """As a JSON value: the fields that were given, by name."""
        said = self.model_dump(exclude_unset=True)
        if "diagnostics" in said:
            said["diagnostics"] = [{key: value for key, value in one.items() if value is not None} for one in said["diagnostics"]]
        return said

    def but(self, **fields: Any) -> "About":
        """The same with other values of these fields. Raises UserError where one is unknown or of the wrong type."""
        about: About = parse(About, self.plain() | fields, "about")
        return about


@runtime_checkable
class Described(Protocol):
    """Whatever has the metadata of an evaluation: the evaluation itself, or its brief."""

    @property
    def about(self) -> About: ...


def typed(eps: float, abouts: Iterable[About]) -> str:
    """A radius as it was typed for any of these evaluations."""
    return radius_words(eps, dict.fromkeys(text for about in abouts for text in about.eps_text))
