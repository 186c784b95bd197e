"""Differences of two records, one line each."""

import json
from typing import Any


def changes(before: Any, now: Any, place: str = "") -> list[str]:
    """A line with both values for each field in which two records differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [*before, *(key for key in now if key not in before)]
        return [line for key in keys for line in changes(before.get(key), now.get(key), f"{place}.{key}" if place else str(key))]
    return [] if before == now else [f"{place}: {told(before)} before, {told(now)} now"]


def told(value: Any) -> str:
    """A value formatted on one line."""
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
