"""A record: one model's table of verdicts, with its metadata."""

from dataclasses import dataclass

import pandas as pd

from robustbench_rkhs.verdicts.about import About


@dataclass(frozen=True, eq=False)
class Record:
    """One model's table, with its metadata."""

    table: pd.DataFrame
    about: About

    def __repr__(self) -> str:
        about = self.about
        images = self.table["index"].nunique() if "index" in self.table else 0
        eps = ", ".join(about.words(one) for one in about.epsilons)
        return f"{type(self).__name__}({about.model} on {about.data}, {about.norm}, eps {eps}: {images} images)"
