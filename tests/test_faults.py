"""The campaign of faults in short: kills, flipped bits and mutated bundles; none of them does harm."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_kills_flips_and_mutated_bundles_do_no_harm():
    campaign = [sys.executable, str(ROOT / "benchmarks" / "faults.py"), "--quick", "--seed", "3"]
    ran = subprocess.run(campaign, capture_output=True, text=True)
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [line["part"] for line in lines] == ["kills", "flips", "bundles"], ran.stderr
    assert not [line["examples"] for line in lines if line["examples"]]
    assert ran.returncode == 0 and all(sum(line["tried"].values()) >= 8 for line in lines)
