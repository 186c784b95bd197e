"""What somebody who forges checkpoint folders does."""

import json
from pathlib import Path

from safetensors.torch import load_file

from robustbench_rkhs.runtime import seals
from robustbench_rkhs.training import checkpoint


def resealed(folder: Path) -> None:
    """Seal a checkpoint folder anew after it was changed by hand: a seal tells damage, and whoever forges can seal."""
    recipe = (folder / "recipe.yaml").read_text().splitlines(keepends=True)
    seals.write_commented(folder / "recipe.yaml", "".join(line for line in recipe if seals.MARK not in line))
    checkpoint.write_safetensors(folder / "model.safetensors", load_file(folder / "model.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    checkpoint._write_config(folder, {key: value for key, value in config.items() if key != "seal"})
