"""Where layers start, and how Sandwich networks end: the square wave at gamma 10, as published and as ours.

    python benchmarks/square_wave_starts.py            # seven settings, three seeds
    python benchmarks/square_wave_starts.py --quick    # one run of a tenth of the epochs

Tightness (the largest slope of a fine grid over gamma, in percent), as in benchmarks/square_wave.py, with `start` and `head` of
`lipschitz_bounded` set to what the code of Wang & Manchester (ICML 2023) does, or to ours. Finished runs are kept in
reports/square_wave_starts/runs and not repeated. Writes reports/square_wave_starts/table.md.
"""

import json
import statistics

from common import ROOT, arguments, finish
from square_wave import PUBLISHED, recipe, slope

from robustbench_rkhs.bounds import upper
from robustbench_rkhs.layers.frozen import freeze
from robustbench_rkhs.training.checkpoint import load
from robustbench_rkhs.training.loop import train

GAMMA = 10.0
SETTINGS = [
    ("sandwich", "published", "published"),
    ("sandwich", "published", "bounded"),
    ("sandwich", "identity", "published"),
    ("sandwich", "identity", "bounded"),
    ("orthogonal", "published", "bounded"),
    ("orthogonal", "identity", "bounded"),
    ("sll", "identity", "published"),
]
"""Family, start, head. The published networks: sandwich with both, orthogonal from the start, sll with the head."""


def main() -> None:
    given = arguments(__doc__, threads=1)
    settings, seeds, epochs = (SETTINGS[:1], [0], 20) if given.quick else (SETTINGS, [0, 1, 2], 200)
    out = ROOT / "reports" / ("square_wave_starts-quick" if given.quick else "square_wave_starts")
    found: dict[str, list[float]] = {}
    for seed in seeds:
        for family, start, head in settings:
            folder = out / "runs" / f"{family}-{start}-{head}-{seed}"
            one = recipe(family, GAMMA, seed, epochs, start=start, head=head)
            if not (folder / "config.json").is_file():
                train(one, folder, device=given.device, command="benchmarks/square_wave_starts.py")
            loaded = load(folder)
            bound = upper(loaded.model, one.data.test().shape).value
            steepest = slope(freeze(loaded.model.double()))
            assert steepest <= bound * (1 + 1e-6), f"UNSOUND: slope {steepest} above the bound {bound}"
            found.setdefault(f"{family}, start {start}, head {head}", []).append(100 * steepest / GAMMA)
            print(json.dumps({"run": folder.name, "tightness": 100 * steepest / GAMMA, "proven_bound": bound}), flush=True)
    lines = ["# Tightness at gamma 10 by start and head (%)", "", f"Mean over {len(seeds)} seeds (smallest to largest).", ""]
    lines += ["| network | ours | published |", "|---|---|---|"]
    for name, some in found.items():
        published = PUBLISHED[name.split(",")[0]][int(GAMMA)]
        lines.append(f"| {name} | {statistics.mean(some):.1f} ({min(some):.1f} to {max(some):.1f}) | {published} |")
    digest = recipe("sandwich", GAMMA, 0, epochs).data.test().digest
    lines += ["", f"`python benchmarks/square_wave_starts.py`, test data {digest[:12]}"]
    (out / "table.md").write_text("\n".join(lines) + "\n")
    figures = {name: statistics.mean(some) for name, some in found.items()}
    finish(
        "square_wave_starts", figures, given, ["benchmarks/square_wave_starts.py", "robustbench_rkhs/networks/lipschitz_bounded.py"]
    )


if __name__ == "__main__":
    main()
