"""Tables of finished blocks, joined to a few large ones: many small ones would take more memory than their rows."""

import pandas as pd

SMALL = 64
"""Most tables that are kept separately. Each costs 30 kB, plus 300 bytes per row."""


class Tables(list[pd.DataFrame]):
    """A list of tables that joins its members whenever there are many of them."""

    def append(self, table: pd.DataFrame) -> None:
        super().append(table)
        if len(self) >= SMALL:
            self[:] = [pd.concat(self, ignore_index=True)]
