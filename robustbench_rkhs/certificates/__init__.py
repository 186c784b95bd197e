"""Certificates: a proved radius for each image."""

from typing import Annotated

from pydantic import Field

from robustbench_rkhs.certificates.contract import Certificate, Certified
from robustbench_rkhs.certificates.margin import MarginCertificate

AnyCertificate = Annotated[MarginCertificate, Field()]
"""Any certificate, chosen by `name`."""

__all__ = ["AnyCertificate", "Certificate", "Certified", "MarginCertificate"]
