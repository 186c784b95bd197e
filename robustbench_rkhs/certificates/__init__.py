"""Certificates: a proved radius for each image."""

from typing import Annotated

from pydantic import Field

from robustbench_rkhs.certificates.contract import Certificate, Certified
from robustbench_rkhs.certificates.eclipse import EclipseCertificate
from robustbench_rkhs.certificates.liplt import LipLTCertificate
from robustbench_rkhs.certificates.margin import MarginCertificate

AnyCertificate = Annotated[MarginCertificate | LipLTCertificate | EclipseCertificate, Field(discriminator="name")]
"""Any certificate, chosen by `name`."""

__all__ = ["AnyCertificate", "Certificate", "Certified", "EclipseCertificate", "LipLTCertificate", "MarginCertificate"]
