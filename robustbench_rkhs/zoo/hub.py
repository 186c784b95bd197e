"""Checkpoint folders from the Hugging Face Hub: only data is fetched, nothing is imported or unpickled."""

import importlib
import re
from pathlib import Path
from typing import Any

from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.reasons import reason

FILES = ("config.json", "recipe.yaml", "model.safetensors")
"""The files that are fetched from a repository."""


def fetched(name: str) -> Path:
    """`owner/name` or `owner/name@revision`: the files of a checkpoint folder, in the Hub's own cache. Raises UserError."""
    repository, _, revision = name.partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UserError(f"expected hf:owner/name, found {'hf:' + name!r}")
    library = _library()
    try:
        paths = [Path(library.hf_hub_download(repository, file, revision=revision or None)) for file in FILES]
    except Exception as error:  # no network, no such repository, a private one
        raise UserError(f"hf:{name} could not be downloaded: {reason(error)}") from None
    return paths[0].parent


def _library() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise UserError(f"models of the Hub need it: pip install huggingface_hub ({reason(error)})") from None
