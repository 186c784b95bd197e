"""Durations as text."""


def span(seconds: float) -> str:
    """A duration in one unit: 34 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def to_go(left: float | None) -> str:
    """The time to go as the end of a line; empty where it is not known."""
    return "" if left is None else f", about {span(left)} to go"


def clock_time(seconds: float) -> str:
    """A duration as a clock shows it: 0:34, 12:05, 1:02:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
