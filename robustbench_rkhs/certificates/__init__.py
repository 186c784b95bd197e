"""Certificates: a proved radius for each image."""

from typing import Annotated, Any

from pydantic import BeforeValidator, TypeAdapter

from robustbench_rkhs.certificates.alpha_crown import AlphaCrownCertificate
from robustbench_rkhs.certificates.base import Certificate, Certified
from robustbench_rkhs.certificates.crown import CrownCertificate
from robustbench_rkhs.certificates.eclipse import EclipseCertificate
from robustbench_rkhs.certificates.ibp import IBPCertificate
from robustbench_rkhs.certificates.liplt import LipLTCertificate
from robustbench_rkhs.certificates.margin import MarginCertificate
from robustbench_rkhs.certificates.sdp_crown import SdpCrownCertificate
from robustbench_rkhs.certificates.smoothing import SmoothingCertificate
from robustbench_rkhs.nodes.one_of import OneOf, names_of

AnyCertificate = Annotated[
    MarginCertificate
    | LipLTCertificate
    | EclipseCertificate
    | IBPCertificate
    | CrownCertificate
    | AlphaCrownCertificate
    | SdpCrownCertificate
    | SmoothingCertificate
    | Certificate,
    OneOf(Certificate, "certificates"),
]
"""Any certificate: ours by `name`, an instance of Certificate, or your own as package.module:Name."""
PORTFOLIO: tuple[dict[str, Any], ...] = (
    {"name": "margin"},
    {"name": "liplt"},
    {"name": "eclipse"},
    {"name": "ibp", "search": False},
    {"name": "crown", "search": False},
    {"name": "alpha_crown", "search": False},
    {"name": "sdp_crown", "search": False, "domains": 64},
)
"""The default certificates (`portfolio`): proofs of the unmodified network, cheapest first, for the requested epsilons only.

Each ends by counted work, never by the clock: the same radii on any machine."""


def listed(given: Any) -> Any:
    """Certificates as typed: a name stands for its defaults, `portfolio` for all of PORTFOLIO."""
    if not isinstance(given, (list, tuple)):
        return given
    found: list[Any] = []
    for one in given:
        found += PORTFOLIO if one == "portfolio" else [one]
    return [{"name": one} if isinstance(one, str) else one for one in found]


def portfolio() -> tuple[Certificate, ...]:
    """The default certificates as nodes."""
    found: tuple[Certificate, ...] = TypeAdapter(Portfolio).validate_python(("portfolio",))
    return found


def certificate_names() -> list[str]:
    """The names of all certificates."""
    return list(names_of(AnyCertificate))


Portfolio = Annotated[tuple[AnyCertificate, ...], BeforeValidator(listed)]
"""Certificates in the order they run: each only on the images that those before left undecided at a requested eps."""

__all__ = [
    "PORTFOLIO",
    "AlphaCrownCertificate",
    "AnyCertificate",
    "Certificate",
    "Certified",
    "CrownCertificate",
    "EclipseCertificate",
    "IBPCertificate",
    "LipLTCertificate",
    "MarginCertificate",
    "Portfolio",
    "SdpCrownCertificate",
    "SmoothingCertificate",
    "certificate_names",
    "portfolio",
]
