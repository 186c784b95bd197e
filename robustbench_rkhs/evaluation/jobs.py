"""A job: a value that says what is to be computed on which images. Its result is a part of the table."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from robustbench_rkhs.attacks import AnyAttack
from robustbench_rkhs.attacks.engine_attack import EngineAttack
from robustbench_rkhs.certificates import AnyCertificate, Certificate
from robustbench_rkhs.evaluation.cache_key import digest_of, settings_of
from robustbench_rkhs.nodes.code_names import CLOSED, Code
from robustbench_rkhs.nodes.node import Node, UserError
from robustbench_rkhs.nodes.parsing import explain
from robustbench_rkhs.nodes.threat_model import Box, Norm
from robustbench_rkhs.verdicts import Part

Phase = Literal["predict", "certify", "attack", "diagnose", "plan"]
JobResult = Part
"""What a job found: rows of the table, and what was noticed beside them."""
_METHODS: Mapping[str, TypeAdapter[Any]] = {"certify": TypeAdapter(AnyCertificate), "attack": TypeAdapter(AnyAttack)}
"""How the method of a phase is written and read."""


@dataclass(frozen=True)
class Job:
    """What is to be computed. Two jobs of one `key` and the same images have the same result, wherever they run."""

    phase: Phase
    label: str
    """The method's name in tables."""
    norm: Norm
    box: Box
    index: tuple[int, ...]
    """The images, by their positions in the original arrays."""
    method: Node | None = None
    """The attack or certificate, aimed."""
    of: Mapping[str, Any] = field(default_factory=dict)
    """What else the result depends on: digests of model, data and sources, seed, device type ..."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """What the phase needs besides, as JSON: part of the key."""
    predicted: tuple[int, ...] = ()
    """The model's answer to each image."""
    certified: tuple[float, ...] = ()
    """Each image's proved radius so far, -1 where there is none: an attack that ends within it is a breach."""
    eps: tuple[float, ...] = ()
    """Each image's own budget, in place of the method's; none of them where empty."""
    seconds: float | None = field(default=None, compare=False)
    """Its clock: seconds from when it is begun; no part of the key."""
    settings: str = ""
    """Digest of the method's settings, as tables say it. Worked out once: it reads the source of a user's own method."""

    def __post_init__(self) -> None:
        for name in ("predicted", "certified", "eps"):
            if len(getattr(self, name)) not in (0, len(self.index)):
                raise ValueError(f"expected {name} of each of {len(self.index)} images, found {len(getattr(self, name))}")
        if self.method is not None and not self.settings:
            without = frozenset({"eps", "seed", "norm"} if self.phase == "attack" else ())
            object.__setattr__(self, "settings", settings_of(self.method, without))

    @property
    def by_image(self) -> bool:
        """Whether the result for an image depends on no other image of the job: it is then kept row by row."""
        return self.phase == "attack" and divisible(self.method)

    @property
    def divisible(self) -> bool:
        """Whether the images may be computed in smaller numbers at once without another outcome."""
        return divisible(self.method)

    @property
    def budgets(self) -> tuple[float, ...]:
        """Each image's eps: its own, or the attack's; infinite where there is none."""
        whole = getattr(self.method, "eps", None)
        return self.eps or (float("inf") if whole is None else float(whole),) * len(self.index)

    def identity(self) -> dict[str, Any]:
        """What the result depends on, besides which images there are."""
        own: dict[str, Any] = {
            "job": self.phase,
            "method": self.label,
            "settings": self.settings,
            "norm": self.norm,
            "box": self.box,
        }
        if self.phase == "attack" and not self.by_image:
            own["eps"] = list(self.eps) or getattr(self.method, "eps", None)
        return {**own, **self.given, **self.of}

    @property
    def key(self) -> str:
        """Digest of the identity."""
        return digest_of(self.identity(), 32)

    @property
    def name(self) -> str:
        """Digest of the identity and the images, with their budgets."""
        return hashlib.sha256(json.dumps([self.key, self.index, list(map(str, self.eps))]).encode()).hexdigest()[:32]

    def at(self, places: Sequence[int]) -> "Job":
        """The same for these of its images."""
        names = [name for name in ("index", "predicted", "certified", "eps") if getattr(self, name)]
        taken: dict[str, Any] = {name: tuple(getattr(self, name)[place] for place in places) for name in names}
        return replace(self, **taken)

    def plain(self) -> dict[str, Any]:
        """As JSON takes it; `Job.read` gives it back."""
        stored = {name: getattr(self, name) for name in ("phase", "label", "norm", "box", "seconds")}
        stored |= {name: list(map(_written, getattr(self, name))) for name in ("index", "predicted", "certified", "eps")}
        method = None if self.method is None else _METHODS[self.phase].dump_python(self.method, mode="json")
        return {**stored, "of": dict(self.of), "given": dict(self.given), "method": method}

    @classmethod
    def read(cls, stored: Mapping[str, Any], code: Code = CLOSED) -> "Job":
        """From `plain()`. `code`: whose methods may be imported. Raises UserError in one line."""
        try:
            fields = {name: stored[name] for name in ("phase", "label", "norm", "box", "seconds", "of", "given")}
            fields |= {name: tuple(stored[name]) for name in ("index", "predicted")}
            fields |= {name: tuple(map(float, stored[name])) for name in ("certified", "eps")}
            method = stored["method"]
            if method is not None:
                method = _METHODS[fields["phase"]].validate_python(method, context={"code": code})
            return cls(**fields, method=method)
        except ValidationError as error:
            raise UserError(f"job: {explain(error)}") from None
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"job: expected the fields of a job, found {str(error) or type(error).__name__}") from None


def divisible(method: Node | None) -> bool:
    """Whether a method finds the same for an image whatever others it is given with it."""
    if isinstance(method, EngineAttack):
        return getattr(method, "effort", "full") != "adaptive"  # that learns from one image what pays on the next
    return isinstance(method, Certificate) and method.image_by_image


def _written(value: float) -> float | str:
    """A number as JSON has it; infinity, which JSON has not, as text."""
    return value if value - value == 0 else str(value)
