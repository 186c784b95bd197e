"""Verifier of certificate files, needs only NumPy and the standard library; also runs standalone: `python verifier OUT/NAME`.

It shares no code with the exporter. proof.py reads the file, build.py turns it into operations (operations.py, affine.py,
convolution.py, fourier.py, curved.py), norms.py proves their norms, chain.py composes them, weights.py reads checkpoints,
check.py decides and command.py reports. Nothing is unpickled, imported or executed from a file.
"""
