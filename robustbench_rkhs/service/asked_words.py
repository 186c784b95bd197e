"""What a board does with a checkpoint, in the words of its page Submit."""

from dataclasses import dataclass

from robustbench_rkhs.nodes.limits import bytes_in_words
from robustbench_rkhs.reports.protocol_flags import eval_command, typed_method
from robustbench_rkhs.service.settings import Settings
from robustbench_rkhs.site.effort_settings import OF_EFFORT


@dataclass(frozen=True)
class Asked:
    """The words."""

    upload: str
    """The largest upload."""
    images: str
    radii: str
    attacks: str
    command: str
    """Of rkhs-eval, which does the same."""


def asked_words(settings: Settings) -> Asked:
    """The protocol of a board and the cap on uploads, in words."""
    said = settings.protocol
    images, norm, eps = said.get("samples"), str(said.get("norm", "l2")), said.get("eps", ())
    radii = ", ".join(map(str, eps if isinstance(eps, (list, tuple)) else [eps]))
    return Asked(
        bytes_in_words(settings.upload),
        "all test images of its data set" if images is None else f"{images:,} test images of its data set",
        f"{norm} {radii}",
        _attacks(said.get("attacks"), str(said.get("effort", "standard")), norm),
        eval_command("MODEL", said),
    )


def _attacks(typed: object, effort: str, norm: str) -> str:
    if isinstance(typed, (list, tuple)) and typed:
        return f"attacked by {', '.join(map(typed_method, typed))}"
    known = OF_EFFORT.get((effort, norm), ())
    return f"attacked with effort {effort}{': ' if known else ''}{', '.join(known)}"
