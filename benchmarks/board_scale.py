"""One query of a very large board: the robust accuracy of a model at an eps, from 10^7 synthetic rows in parquet.

    python benchmarks/board_scale.py            # 1,000 models x 10,000 images
    python benchmarks/board_scale.py --quick    # a hundredth of it

A row is an image of a model: its certified radius and its smallest broken radius (float32), whether it is classified correctly.
Sorted by model, in row groups of 100,000, so that the question about one model reads one group. Prints bytes per row, seconds for
one model, and for a ranking of all models at one eps. docs/scale.md says what follows for 10^9 rows.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from common import arguments, finish

SOURCES = ["benchmarks/board_scale.py"]
IMAGES = 10_000
GROUP = 100_000


def written(path: Path, models: int) -> int:
    """A table of synthetic radii; its bytes."""
    chance = np.random.default_rng(0)
    schema = pa.schema([("model", pa.int32()), ("correct", pa.bool_()), ("certified", pa.float32()), ("broken", pa.float32())])
    with pq.ParquetWriter(path, schema, compression="zstd") as file:
        for first in range(0, models, GROUP // IMAGES):
            some = np.repeat(np.arange(first, min(first + GROUP // IMAGES, models), dtype=np.int32), IMAGES)
            broken = chance.lognormal(-0.5, 0.6, len(some)).astype(np.float32)
            certified = (broken * chance.uniform(0, 0.7, len(some))).astype(np.float32)
            columns = [some, chance.random(len(some)) < 0.9, certified, broken]
            file.write_table(pa.table(dict(zip(schema.names, columns, strict=True)), schema), row_group_size=GROUP)
    return path.stat().st_size


def one_model(path: Path, model: int, eps: float) -> float:
    """Its robust accuracy at eps."""
    rows = pq.read_table(path, filters=[("model", "=", model)])
    return float(pc.mean(pc.and_(rows["correct"], pc.greater(rows["broken"], eps)).cast(pa.float32())).as_py())


def ranking(path: Path, eps: float) -> list[tuple[float, int]]:
    """All models by robust accuracy at eps, read group by group: memory is that of one group."""
    sums: dict[int, tuple[int, int]] = {}
    file = pq.ParquetFile(path)
    for number in range(file.num_row_groups):
        rows = file.read_row_group(number, columns=["model", "correct", "broken"])
        robust = pc.and_(rows["correct"], pc.greater(rows["broken"], eps)).cast(pa.int32())
        grouped = (
            pa.table({"model": rows["model"], "robust": robust})
            .group_by("model")
            .aggregate([("robust", "sum"), ("robust", "count")])
        )
        for model, held, count in zip(
            *(grouped[name].to_pylist() for name in ("model", "robust_sum", "robust_count")), strict=True
        ):
            before = sums.get(model, (0, 0))
            sums[model] = before[0] + held, before[1] + count
    return sorted(((held / count, model) for model, (held, count) in sums.items()), reverse=True)


def main() -> None:
    given = arguments(__doc__ or "", threads=1)
    models = 10 if given.quick else 1_000
    found: dict[str, Any] = {"models": models, "rows": models * IMAGES}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        size = written(path, models)
        started = time.process_time()
        accuracy = one_model(path, models // 2, 0.5)
        one = time.process_time() - started
        started = time.process_time()
        order = ranking(path, 0.5)
        whole = time.process_time() - started
        if dict((model, share) for share, model in order)[models // 2] != accuracy:
            raise AssertionError("the ranking and the question about one model disagree")
    found |= {
        "bytes_per_row": round(size / found["rows"], 2),
        "seconds_one_model": round(one, 4),
        "seconds_ranking": round(whole, 3),
    }
    finish("board_scale", found, given, SOURCES)


if __name__ == "__main__":
    main()
