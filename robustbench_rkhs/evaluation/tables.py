"""Tables of finished blocks, kept as few large ones: many small ones would take more memory than their rows."""

import pandas as pd

SMALL = 64
"""Tables that are kept apart, at most. One costs 30 kB whatever it holds, a row 300 bytes."""


class Tables(list[pd.DataFrame]):
    """A list of tables that joins its members whenever there are many of them."""

    def append(self, table: pd.DataFrame) -> None:
        super().append(table)
        if len(self) >= SMALL:
            self[:] = [pd.concat(self, ignore_index=True)]
