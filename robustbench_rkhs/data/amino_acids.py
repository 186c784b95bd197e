"""Amino acids as vectors: one-hot, or the rows of BLOSUM62."""

from typing import Literal

import numpy as np

from robustbench_rkhs.nodes.node import UserError

LETTERS = "ARNDCQEGHILKMFPSTWYV"
"""The twenty amino acids, in the order of the matrix."""
Encoding = Literal["one_hot", "blosum62"]
"""`one_hot`: one channel per amino acid; `blosum62`: its row of the matrix, at l2 length 1, so that similar ones are close."""

BLOSUM62 = np.array(
    [
        [4, -1, -2, -2, 0, -1, -1, 0, -2, -1, -1, -1, -1, -2, -1, 1, 0, -3, -2, 0],
        [-1, 5, 0, -2, -3, 1, 0, -2, 0, -3, -2, 2, -1, -3, -2, -1, -1, -3, -2, -3],
        [-2, 0, 6, 1, -3, 0, 0, 0, 1, -3, -3, 0, -2, -3, -2, 1, 0, -4, -2, -3],
        [-2, -2, 1, 6, -3, 0, 2, -1, -1, -3, -4, -1, -3, -3, -1, 0, -1, -4, -3, -3],
        [0, -3, -3, -3, 9, -3, -4, -3, -3, -1, -1, -3, -1, -2, -3, -1, -1, -2, -2, -1],
        [-1, 1, 0, 0, -3, 5, 2, -2, 0, -3, -2, 1, 0, -3, -1, 0, -1, -2, -1, -2],
        [-1, 0, 0, 2, -4, 2, 5, -2, 0, -3, -3, 1, -2, -3, -1, 0, -1, -3, -2, -2],
        [0, -2, 0, -1, -3, -2, -2, 6, -2, -4, -4, -2, -3, -3, -2, 0, -2, -2, -3, -3],
        [-2, 0, 1, -1, -3, 0, 0, -2, 8, -3, -3, -1, -2, -1, -2, -1, -2, -2, 2, -3],
        [-1, -3, -3, -3, -1, -3, -3, -4, -3, 4, 2, -3, 1, 0, -3, -2, -1, -3, -1, 3],
        [-1, -2, -3, -4, -1, -2, -3, -4, -3, 2, 4, -2, 2, 0, -3, -2, -1, -2, -1, 1],
        [-1, 2, 0, -1, -3, 1, 1, -2, -1, -3, -2, 5, -1, -3, -1, 0, -1, -3, -2, -2],
        [-1, -1, -2, -3, -1, 0, -2, -3, -2, 1, 2, -1, 5, 0, -2, -1, -1, -1, -1, 1],
        [-2, -3, -3, -3, -2, -3, -3, -3, -1, 0, 0, -3, 0, 6, -4, -2, -2, 1, 3, -1],
        [-1, -2, -2, -1, -3, -1, -1, -2, -2, -3, -3, -1, -2, -4, 7, -1, -1, -4, -3, -2],
        [1, -1, 1, 0, -1, 0, 0, 0, -1, -2, -2, 0, -1, -2, -1, 4, 1, -3, -2, -2],
        [0, -1, 0, -1, -1, -1, -1, -2, -2, -1, -1, -1, -1, -2, -1, 1, 5, -2, -2, 0],
        [-3, -3, -4, -4, -2, -2, -3, -2, -2, -3, -2, -3, -1, 1, -4, -3, -2, 11, 2, -3],
        [-2, -2, -2, -3, -2, -1, -2, -3, 2, -1, -1, -2, -1, 3, -3, -2, -2, 2, 7, -1],
        [0, -3, -3, -3, -1, -2, -2, -3, -3, 3, 1, -2, 1, -1, -2, -2, 0, -3, -1, 4],
    ]
)
"""Substitution scores in half bits. Source: Henikoff & Henikoff, PNAS 1992."""


def table(encoding: Encoding) -> np.ndarray:
    """One float32 row of 20 for each byte. B is the mean of N and D, Z of Q and E; X and the padding (byte 0) are zero.

    Lower-case letters count as upper-case ones; any other byte has a row of NaN.
    """
    vectors = np.eye(20) if encoding == "one_hot" else BLOSUM62 / np.linalg.norm(BLOSUM62, axis=1, keepdims=True)
    rows = np.full((256, 20), np.nan, np.float32)
    known = {letter: vectors[position] for position, letter in enumerate(LETTERS)}
    known |= {"B": (known["N"] + known["D"]) / 2, "Z": (known["Q"] + known["E"]) / 2, "X": np.zeros(20)}
    for letter, vector in known.items():
        rows[ord(letter)] = rows[ord(letter.lower())] = vector
    rows[0] = 0
    return rows


TABLES: dict[Encoding, np.ndarray] = {"one_hot": table("one_hot"), "blosum62": table("blosum62")}


def encode(sequences: list[str], encoding: Encoding, length: int) -> np.ndarray:
    """(count, 20, length) float32: cut at `length`, padded with zeros at the end. Raises UserError at a foreign letter."""
    codes = np.zeros((len(sequences), length), np.uint8)
    for position, sequence in enumerate(sequences):
        letters = np.frombuffer(sequence.encode("ascii", "replace"), np.uint8)
        if np.isnan(TABLES[encoding][letters, 0]).any():
            foreign = sorted({letter for letter in sequence.upper() if letter not in LETTERS + "BXZ"})
            raise UserError(f"sequence {position}: expected amino acids {LETTERS}BXZ, found {' '.join(foreign)}")
        codes[position, : len(letters)] = letters[:length]
    return np.ascontiguousarray(TABLES[encoding][codes].transpose(0, 2, 1))
