"""What the files of a checkpoint say without PyTorch: a refusal for it need not wait for the import, which takes seconds."""

from itertools import islice
from pathlib import Path

from robustbench_rkhs.nodes.documents import json_of, read_text, yaml_of
from robustbench_rkhs.nodes.limits import Limits
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.weights_header import weights_header
from robustbench_rkhs.submission.bundle_names import MOST, check_checkpoint


def quick_look(folder: Path, limits: Limits) -> None:
    """Raises UserError for a file too many or too few, where config.json or recipe.yaml is no mapping, and where the weights are no
    safetensors file of allowed sizes.
    """
    check_checkpoint((entry.name for entry in islice(folder.iterdir(), MOST)), str(folder))
    texts = {name: read_text(folder / name, limits) for name in ("config.json", "recipe.yaml")}
    for name, read in (("config.json", json_of), ("recipe.yaml", yaml_of)):
        if not isinstance(found := read(texts[name], f"{folder}/{name}", limits), dict):
            raise UserError(f"checkpoint {str(folder)!r}: {name} is not a mapping, found a {type(found).__name__}")
    weights_header(folder / "model.safetensors", limits)
