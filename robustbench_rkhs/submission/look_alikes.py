"""Look-alike names: names with the same skeleton count as one, whatever their case, alphabet or separators."""

import unicodedata
from collections.abc import Iterable

LATIN = "aаα bьв cсϲ dԁ eеєε gɡ hһн iіιı jјϳ kкκ mм nпη oоοσ pрρ qԛ rг sѕ tтτ uυ vνѵ wԝω xхχ yуγү zζ"
"""Each word: a Latin letter, then the lower-case Greek and Cyrillic letters that look like it."""
SIGNS = {"0": "o", "1": "l", "|": "l", "i": "l", "5": "s", "-": "_", ".": "_", "~": "_", " ": "_"}
"""Digits and signs that look like letters or like one another (I, l and 1 look the same in many fonts)."""
_TABLE = str.maketrans({letter: word[0] for word in LATIN.split() for letter in word[1:]})
_SIGNS = str.maketrans(SIGNS)


def skeleton(name: str) -> str:
    """A name without case, accents and invisible characters, each look-alike mapped to one representative."""
    text = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", name).casefold())
    text = "".join(sign for sign in text if unicodedata.category(sign) not in ("Mn", "Cf", "Cc"))
    return text.translate(_TABLE).translate(_SIGNS).replace("rn", "m").replace("vv", "w")


def looks_like(name: str, names: Iterable[str]) -> str:
    """The first of these names that differs from this one but looks like it; empty if there is none."""
    read = skeleton(name)
    return next((other for other in sorted(names) if other != name and skeleton(other) == read), "")
