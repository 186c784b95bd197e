"""Certificate files: networks as plain operations, with their claims, for `rkhs-verify` to re-check."""

from robustbench_rkhs.proofs import image_operations as image_operations  # these add their export rules
from robustbench_rkhs.proofs.export import write_proof
from robustbench_rkhs.proofs.layers_written import Plain, written

__all__ = ["Plain", "write_proof", "written"]
