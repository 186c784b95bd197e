"""SCOP remote homology of proteins: find the few members of a family among many sequences."""

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from robustbench_rkhs.data.amino_acids import Encoding, encode
from robustbench_rkhs.data.sets import Arrays, DataSet
from robustbench_rkhs.data.task import Task
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.paths import data_root
from robustbench_rkhs.nodes.threat_model import Box


class Protein(DataSet):
    """SCOP remote homology: find the few members of a group of proteins, of which training shows distant relatives.

    Read from protein/FAMILY.train.fasta and protein/FAMILY.test.fasta in the data root; the header `>1` or `>0` is the label.
    Inputs are (20, length): one column per amino acid, cropped at `length` or padded with zeros at the end; B is the mean of N and
    D, Z of Q and E, X is zero, lower case counts as upper case. The test set has 6 to 120 members among about 1,200 others,
    so the AUC is coarse: results are auROC and auROC50, not accuracy.

    The test set is as published. Training sequences that also occur in the test set (4 in family 2.1, 2 in 3.33, no others)
    are left out, and duplicates among training sequences are dropped (up to 1,188, in 2.1), as copies could be in both
    training and validation.
    Source: the FASTA files of FastSK (Blakely et al., Bioinformatics 2020); SCOP: Murzin et al., 1995.
    """

    task: ClassVar[Task] = "ranking"
    box: ClassVar[Box] = "none"

    name: Literal["protein"] = "protein"
    family: str = Field("1.1", pattern=r"^\d{1,3}\.\d{1,3}$")
    """SCOP number of the task: 1.1 1.34 2.1 2.8 2.19 2.31 2.34 2.41 3.19 3.25 3.33 3.50."""
    encoding: Encoding = "blosum62"
    """The encoding of an amino acid: `one_hot`, or `blosum62`, its row of the matrix, scaled to length 1."""
    length: int = Field(400, ge=1)
    """Length to which sequences are cropped; about nine in ten are shorter than 400, the longest has 905."""

    @property
    def title(self) -> str:
        """Each family is a separate data set."""
        return f"{self.name}-{self.family}"

    def arrays(self) -> Arrays:
        folder = data_root() / "protein"
        y_train, train = read_fasta(folder / f"{self.family}.train.fasta")
        y_test, test = read_fasta(folder / f"{self.family}.test.fasta")
        label, tested = dict(zip(train, y_train, strict=True)), set(test)
        kept = [sequence for sequence in label if sequence not in tested]
        x_train, x_test = (encode(part, self.encoding, self.length) for part in (kept, test))
        return x_train, np.array([label[sequence] for sequence in kept], np.int64), x_test, np.array(y_test, np.int64)


def read_fasta(path: Path) -> tuple[list[int], list[str]]:
    """Labels and sequences of a file whose headers are `>0` or `>1`. Raises UserError, naming the line."""
    if not path.is_file():
        there = sorted({file.name.removesuffix(".train.fasta") for file in path.parent.glob("*.train.fasta")})
        raise UserError(f"data set 'protein': {path} is missing; families there: {', '.join(there) or 'none'}")
    labels: list[int] = []
    parts: list[list[str]] = []
    for number, line in enumerate(path.read_text(errors="replace").split("\n")):
        line = line.strip()
        if line.startswith(">"):
            if line not in (">0", ">1"):
                raise UserError(f"{path}, line {number + 1}: expected a header >0 or >1, found {line[:40]!r}")
            labels.append(int(line[1]))
            parts.append([])
        elif line:
            if not parts:
                raise UserError(f"{path}, line {number + 1}: a sequence before the first header")
            parts[-1].append(line)
    sequences = ["".join(lines) for lines in parts]
    for number, sequence in enumerate(sequences):
        if not sequence:
            raise UserError(f"{path}: record {number + 1} has no sequence")
    return labels, sequences
