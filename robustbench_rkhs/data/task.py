"""What is asked of a model."""

from typing import Literal

Task = Literal["classification", "regression", "ranking"]
"""What is asked of a model: a class, a number, or a score by which the rare class comes first."""
