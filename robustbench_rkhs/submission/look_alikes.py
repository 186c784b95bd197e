"""Names that look alike: two names of one skeleton are taken for one, whatever their case, alphabet or separators."""

import unicodedata
from collections.abc import Iterable

LATIN = "aаα bьв cсϲ dԁ eеєε gɡ hһн iіιı jјϳ kкκ mм nпη oоοσ pрρ qԛ rг sѕ tтτ uυ vνѵ wԝω xхχ yуγү zζ"
"""A Latin letter, and the Greek and Cyrillic ones, in lower case, that are read as it."""
SIGNS = {"0": "o", "1": "l", "|": "l", "i": "l", "5": "s", "-": "_", ".": "_", "~": "_", " ": "_"}
"""Digits and signs that are read as letters or as one another (I, l and 1 are one sign in many fonts)."""
_TABLE = str.maketrans({letter: word[0] for word in LATIN.split() for letter in word[1:]})
_SIGNS = str.maketrans(SIGNS)


def skeleton(name: str) -> str:
    """What a name is read as: without case, accents and invisible signs, look-alikes mapped to one of them."""
    text = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", name).casefold())
    text = "".join(sign for sign in text if unicodedata.category(sign) not in ("Mn", "Cf", "Cc"))
    return text.translate(_TABLE).translate(_SIGNS).replace("rn", "m").replace("vv", "w")


def looks_like(name: str, names: Iterable[str]) -> str:
    """The first of these names that reads like this one and is another; empty where there is none."""
    read = skeleton(name)
    return next((other for other in sorted(names) if other != name and skeleton(other) == read), "")
