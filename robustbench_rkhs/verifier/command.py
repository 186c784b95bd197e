"""The command `rkhs-verify`: its arguments and its output."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from .check import Verdict, rounded, verify
from .claims import boxed
from .norms import Unproved
from .operations import Malformed, expected
from .proof import Rejected, number


def table(verdict: Verdict, epsilons: Sequence[float], seconds: float, radii: bool = False) -> list[str]:
    """The lines that summarise a successful check."""
    about, count = verdict.proof.about, len(verdict.radius)
    data = about["data"] if isinstance(about["data"], dict) else {}
    where = ", for images in [0, 1]" if boxed(verdict.proof) else ""
    lines = [f"{about['model']} on {data.get('name')} {data.get('split')}, {about['norm']}{where}"]
    product = max((own for _, _, own in verdict.layers), default=1.0)
    lines.append(f"  layers     {len(verdict.layers)}, largest bound {product:.6g}")
    lines.append(
        f"  images     {count} of {len(verdict.proof.array('images'))}, median radius {rounded(float(np.median(verdict.radius)))}"
    )
    for eps in epsilons:
        share = float(((verdict.radius >= eps) & (verdict.radius > 0)).mean())
        lines.append(f"  certified  {share:.2%} at eps {eps:g}")
    lines += [f"  {note}" for note in verdict.notes]
    if radii:
        lines += [
            f"  radius of image {index}: {rounded(value)}" for index, value in zip(verdict.index, verdict.radius, strict=True)
        ]
    all_of_it = count == len(verdict.proof.array("images"))
    return [*lines, f"  seconds    {seconds:.1f}", "verified" if all_of_it else f"verified for the first {count} images"]


def main(arguments: Sequence[str], more: str = "") -> int:
    """Run the command. Exit code 0: verified; 1: rejected; 2: not a proof. `more`: last line of --help."""
    parser = Parser(prog="rkhs-verify", description="Re-check certificate files, using only NumPy.", epilog=more)
    parser.add_argument("proof", nargs="+", type=Path, help="folder with proof.json and proof.npz")
    parser.add_argument("--eps", nargs="*", type=_fraction, help="radii to count certified images at (default: the proof's)")
    parser.add_argument("--samples", type=int, help="check only the first SAMPLES images")
    parser.add_argument("--weights", type=Path, help="model.safetensors that the proof must belong to")
    parser.add_argument("--radii", action="store_true", help="print each image's radius")
    asked, code = parser.parse_args(arguments), 0
    if asked.samples is not None and asked.samples < 1:
        parser.error(f"--samples: expected at least 1, found {asked.samples}")
    for folder in asked.proof:
        started = time.perf_counter()
        try:
            verdict = verify(folder, asked.samples, asked.weights)
            epsilons = verdict.proof.about["epsilons"] if asked.eps is None else asked.eps
            expected(isinstance(epsilons, list), "expected a list of epsilons")
            epsilons = [number(eps, "eps") for eps in epsilons]
            print("\n".join(map(shown, table(verdict, epsilons, time.perf_counter() - started, asked.radii))))
        except Rejected as reason:
            print(shown(f"NOT verified: {folder}: {reason}"))
            code = max(code, 1)
        except (Malformed, Unproved, MemoryError, OverflowError) as reason:
            print(shown(f"not a proof: {folder}: {reason}"), file=sys.stderr)
            code = 2
        except Exception as error:  # unforeseen malformed input: no traceback, never verified
            print(shown(f"not a proof: {folder}: {type(error).__name__}: {error}"), file=sys.stderr)
            code = 2
    return code


class Parser(argparse.ArgumentParser):
    """Argument parser that reports wrong arguments in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {shown(message)}\n")


def shown(line: str) -> str:
    """A line that is safe to print: control and invisible characters are written as escapes."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in line)


def _fraction(text: str) -> float:
    above, _, below = text.partition("/")
    try:
        found = float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"expected a number or a fraction such as 36/255, found {text!r}") from None
    if not 0 <= found < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a finite radius from 0 up, found {text!r}")
    return found
