"""Models by name: a name that is none is refused before anything large is imported."""

import subprocess
import sys

COMMANDS = {
    "evaluate": ["--model", "digit_mlp", "--eps", "0.5"],
    "audit": ["--model", "digit_mlp", "--claim", "certified@0.5=0.3"],
    "norms": ["--model", "digit_mlp"],
    "rank": ["--model", "digit_mlp"],
    "tightness": ["--model", "digit_mlp"],
}
SCRIPT = """
import importlib, sys
for name, words in {commands!r}.items():
    sys.argv = ["rkhs", *words]
    try:
        importlib.import_module("robustbench_rkhs.cli." + name).main()
    except SystemExit as ended:
        print(name, ended.code, "torch" in sys.modules)
"""


def test_a_misspelt_model_is_refused_without_torch():
    words = [sys.executable, "-c", SCRIPT.format(commands=COMMANDS)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == [f"{name} 2 False" for name in COMMANDS], done.stderr
    assert done.stderr.count("unknown model 'digit_mlp'; did you mean 'digits_mlp'?") == len(COMMANDS)


def test_with_weights_the_name_is_a_recipes():
    words = [*COMMANDS["norms"], "--weights", "none.safetensors"]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(commands={"norms": words})], capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["norms", "2", "False"] and "digits_mlp" in done.stderr
