"""Audits: claimed accuracies compared with certificates and attacks, and the tightness of certificates."""

from robustbench_rkhs.audit.claim_audit import audit
from robustbench_rkhs.audit.claims import Claim
from robustbench_rkhs.audit.factors import Part, parts
from robustbench_rkhs.audit.mistakes import MISTAKES
from robustbench_rkhs.audit.ratios import BOUNDS, tightness
from robustbench_rkhs.audit.scene import Scene
from robustbench_rkhs.audit.stale import stale_layers

__all__ = ["BOUNDS", "MISTAKES", "Claim", "Part", "Scene", "audit", "parts", "stale_layers", "tightness"]
