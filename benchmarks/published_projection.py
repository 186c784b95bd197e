"""The spectral projection as it was published, done straightforwardly: what ours is measured against.

Every weight, at every step, by the eigendecomposition of M^T M + 1e-6 I on the CPU, whether anything exceeds tau or not.
Written from the description of Bietti et al., ICML 2019, and of their published defaults.
"""

import numpy as np
import torch
from torch import Tensor


def published_projection(matrix: Tensor, tau: float) -> Tensor:
    """M with singular values clipped at tau: M V diag(min(1, tau / sigma)) V^T. `matrix` (rows, columns) is left alone."""
    array = matrix.detach().cpu().numpy()
    values, vectors = np.linalg.eigh(array.T @ array + np.float32(1e-6) * np.eye(array.shape[1], dtype=array.dtype))
    shrink = np.minimum(1, tau / np.sqrt(np.maximum(values, 1e-12)))
    return torch.from_numpy((array @ (vectors * shrink)) @ vectors.T).to(matrix)
