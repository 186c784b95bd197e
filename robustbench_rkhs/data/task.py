"""The task of a model."""

from typing import Literal

Task = Literal["classification", "regression", "ranking"]
"""The task of a model: predict a class, a number, or a score that ranks the rare class first."""
