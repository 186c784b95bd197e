"""Re-checks certificate files with NumPy and the standard library alone; the folder runs by itself: `python verifier OUT/NAME`.

It shares no code with what wrote the file: proof.py reads it, operations.py, affine.py and curved.py are the layers, norms.py proves
their norms, chain.py puts them together, check.py decides. Nothing is unpickled, imported or executed from a file.
"""
