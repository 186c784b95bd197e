"""The small world that a campaign of faults runs in: a recipe, a trained folder, tables, adversarial images, a proof, a sweep."""

from pathlib import Path

import fault_child

RECIPE = """about: A tiny network for the campaign of faults
data: {name: digits, train: 200, validation: 40}
network: {name: mlp, hidden: [8]}
epochs: 4
batch_size: 20
optimizer: {name: adam, lr: 0.03}
attack: {name: pgd, eps: 0.1, steps: 1}
"""
SWEEP = """about: Four tiny settings
recipe: tiny.yaml
settings: {epochs: 2}
vary: {optimizer.lr: [0.01, 0.03], attack.eps: [0.1, 0.2]}
sampler: grid
seeds: [0]
pick: validation_robust
eps: 0.2
"""
EVAL = ["eval", "--eps", "0.1", "0.3", "--samples", "24", "--block", "8", "--attack", "pgd:steps=5", "superdeepfool"]
EVAL += ["--certify", "margin", "liplt", "--device", "cpu"]
SUBMIT = ["--eps", "0.1", "0.3", "--attack", "superdeepfool", "--certify", "margin", "--device", "cpu"]
TRAIN = ["train", "--model", "tiny.yaml", "--out", "tiny", "--device", "cpu"]
LIMIT = 600.0


def build(place: Path) -> Path:
    """Fill a folder with everything the campaign starts from. Raises SystemExit with what a command printed where it failed."""
    place.mkdir(parents=True)
    (place / "tiny.yaml").write_text(RECIPE)
    (place / "sweep.yaml").write_text(SWEEP)
    must(TRAIN, place)
    (place / "theirs").mkdir()
    for file in ("config.json", "model.safetensors", "recipe.yaml", "README.md", "metrics.jsonl"):
        (place / "theirs" / file).write_bytes((place / "tiny" / file).read_bytes())
    must([*EVAL, "--model", "tiny", "--save-adversarials", "found.npz", "--save-certificates", "proofs"], place)
    return place


def must(words: list[str], place: Path) -> None:
    """A command that has to succeed."""
    ended = fault_child.child(fault_child.command(words), place, LIMIT)
    if ended.code != 0:
        raise SystemExit(f"{' '.join(words)} ended with {ended.code}:\n{ended.said}")
