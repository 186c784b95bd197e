"""Re-checks certificate files with NumPy and the standard library alone; the folder runs by itself: `python verifier OUT/NAME`.

It shares no code with what wrote the file: proof.py reads it, build.py makes operations of it (operations.py, affine.py,
convolution.py, fourier.py, curved.py), norms.py proves their norms, chain.py puts them together, weights.py reads checkpoints,
check.py decides, command.py says so. Nothing is unpickled, imported or executed from a file.
"""
