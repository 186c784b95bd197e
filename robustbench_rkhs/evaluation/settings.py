"""EvalSettings: the fields of an evaluation's recipe without the types of its methods, so that flags are read without PyTorch."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WrapValidator

from robustbench_rkhs.nodes.node import Node, Real, Seconds, Seed
from robustbench_rkhs.nodes.radius_text import keep_text
from robustbench_rkhs.nodes.threat_model import Effort, Norm, Order, norm_named


def several(value: Any) -> Any:
    """One value as a tuple of one; several as they are."""
    return (value,) if isinstance(value, (int, float, str)) else value


Radius = Annotated[Real, Field(ge=0), WrapValidator(keep_text)]
"""A radius that remembers how it was typed."""


class EvalSettings(Node):
    """How a model is evaluated: norm, radii, attacks, certificates, images. What these are named is not looked at here."""

    norm: Annotated[Norm, BeforeValidator(norm_named)] = "l2"
    """Distance the radii are measured in."""
    eps: Annotated[tuple[Radius, ...], BeforeValidator(several)]
    """Asked-for radii, in pixels of [0, 1]."""
    attacks: tuple[Any, ...] = ()
    """The protocol: minimal-norm attacks, then the others, each on the images still open. Empty: the attacks of `effort`."""
    effort: Effort = "standard"
    """The protocol where no attack is named. quick: the union of the minimal-norm attacks, and no alpha_crown or sdp_crown.
    standard: cheap minimal-norm attacks, then the full ensemble at the largest eps that is open. adaptive: the same with what still
    pays of the ensemble."""
    certificates: tuple[Any, ...] = ("portfolio",)
    """Certificates, each on the images that those before left open; all that are named run, none where empty. `portfolio`: the
    default ones, of which a pilot of 8 images leaves out those that settle nothing there beyond the others."""
    curve: bool | None = None
    """Search each certified radius up to the largest eps, to 1/64 of it, so that certified accuracy is a curve over all eps. False:
    stop at the requested eps. None: search where that costs less than the attacks, as counted on the pilot of the portfolio."""
    certify_seconds: Annotated[Real, Field(gt=0)] | None = None
    """Time limit of each certificate, which stops where it is: the radii proved so far count, and images it does not settle are
    marked `timeout`. None: as long as it takes."""
    samples: int | None = Field(None, ge=1)
    """Test images; all where not given."""
    order: Order = "stratified"
    """Which test images `samples` takes. stratified: a seeded subset with the classes in proportion. first: the first ones in the
    data set's own order, as published figures often do."""
    seed: Seed = 0
    """Which images, and every random draw of the attacks."""
    block: int = Field(64, ge=1)
    """Images per block, the unit of resuming: bounds the memory. Random draws of library attacks depend on it."""
    workers: int | None = Field(None, ge=1, le=1024)
    """Processes that take a block each, on a CPU, one thread each: the table is the same to the last digit at any number of them.
    None: this process alone."""
    threads: int | None = Field(None, ge=1, le=1024)
    """Threads of PyTorch on a CPU. None: one for a network under 1e7 multiply-adds, else one or all, whichever a few gradients at
    the start show to be faster; the same model in the same folder keeps that number."""
    budget: Seconds | None = None
    """Seconds (or 90s, 10min, 2h) after which everything stops where it is, within a second where the model is not slower than
    that: a first look after a tenth of it, certificates after a third of the rest, a second look (20 gradient steps within the
    largest open eps) after 0.6 of what is left then, attacks and the diagnosis at its end. What was found counts; images not
    settled are untested. Where there is no time to ask about each image once, fewer are taken. It changes nothing else, and the
    same evaluation without it goes on from there."""
    rechecked: int = Field(8, ge=0)
    """How many of the survivals that are inferred from a larger eps are attacked at their own eps after all; the share that is
    broken is reported. Cost: at most so many runs of the fixed-budget attacks, each about 8,800 passes of the ensemble where the
    image is not broken."""
    diagnostics: bool = True
    """Check on 64 images (16 where the effort is quick) whether the attacks can be believed, mark the model where not, and attack
    its survivors further. Cost: at most 1,550 passes per image of these. Without: the result is marked undiagnosed."""
