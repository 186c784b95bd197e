"""Numbers with what they count, in the right form."""


def counted(number: int, one: str) -> str:
    """`1 board`, `2 boards`, `1,200 images`."""
    return f"{number:,} {one}{'' if number == 1 else 's'}"


def listed(names: list[str] | tuple[str, ...]) -> str:
    """`a, b and c`; empty for none."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))
