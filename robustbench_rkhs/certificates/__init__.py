"""Certificates: a proved radius for each image."""

from typing import Annotated

from pydantic import Field

from robustbench_rkhs.certificates.alpha_crown import AlphaCrownCertificate
from robustbench_rkhs.certificates.contract import Certificate, Certified
from robustbench_rkhs.certificates.crown import CrownCertificate
from robustbench_rkhs.certificates.ibp import IBPCertificate
from robustbench_rkhs.certificates.margin import MarginCertificate

AnyCertificate = Annotated[
    MarginCertificate | IBPCertificate | CrownCertificate | AlphaCrownCertificate, Field(discriminator="name")
]
"""Any certificate, chosen by `name`."""

__all__ = [
    "AlphaCrownCertificate",
    "AnyCertificate",
    "Certificate",
    "Certified",
    "CrownCertificate",
    "IBPCertificate",
    "MarginCertificate",
]
