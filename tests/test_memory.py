"""Rows and positions that are kept in little memory are those that were given."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from robustbench_rkhs import verdicts
from robustbench_rkhs.data.stream import stream_of_array
from robustbench_rkhs.evaluation.cache_key import digest_of
from robustbench_rkhs.evaluation.halving import Halving
from robustbench_rkhs.evaluation.image_digests import ImageDigests
from robustbench_rkhs.evaluation.image_places import ImagePlaces
from robustbench_rkhs.evaluation.pair_places import PairPlaces
from robustbench_rkhs.evaluation.row_cache import MOST, RowCache
from robustbench_rkhs.evaluation.runs import Runs
from robustbench_rkhs.evaluation.tables import SMALL, Tables
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.verdicts import Noticed, Part
from robustbench_rkhs.verdicts.schema import COLUMNS


def digests(index: Any) -> list[str]:
    return [f"{one:064x}" for one in index]


def rows(index: Any, **columns: Any) -> pd.DataFrame:
    index = np.asarray(index, dtype=np.int64)
    plain = {"model": "m", "weights": "w", "data": "d", "split": "test", "norm": "l2", "box": "unit", "kind": "certificate"}
    plain |= {"method": "prediction", "settings": "", "eps": np.nan, "index": index, "input_sha256": digests(index)}
    plain |= {"label": index % 3, "predicted": index % 2, "state_reason": "", "radius": 0.0, "distance_l2": np.nan}
    plain |= {"distance_linf": np.nan, "forwards": 1, "backwards": 2**40, "seconds": 0.5, "arithmetic": ""}
    return pd.DataFrame({**plain, "failure_probability": 0.0, **columns}, index=range(len(index)))[COLUMNS]


def attacked(index: Any, eps: float, seed: int) -> pd.DataFrame:
    radius = np.where(np.random.default_rng(seed).random(len(index)) < 0.5, np.random.default_rng(seed).random(len(index)), np.inf)
    near = np.where(np.isfinite(radius), radius, np.nan)
    reason = np.where(np.asarray(index) % 5, "", "error")
    own = {"kind": "attack", "method": f"pgd{seed % 3}", "state_reason": reason, "settings": "s", "eps": eps}
    return rows(index, **own, radius=radius, distance_l2=near, distance_linf=near / 2)


def test_tables_give_back_every_row_as_it_was() -> None:
    """Against `pd.concat`: many blocks, in any order, with the same digests, types and infinities; and the same table at last."""
    tables, plain = Tables(ImageDigests(np.arange(700))), []
    order = np.random.default_rng(0).permutation(700)
    for number, some in enumerate(np.array_split(order, 100)):
        plain += [rows(some), attacked(some, 0.5, number), attacked(some, 0.25, number)]
    for table in plain:
        tables.append(table)
    assert len(tables) < SMALL
    merged = tables.merged()
    pd.testing.assert_frame_equal(merged, verdicts.merge(plain))
    expected = pd.concat(plain, ignore_index=True).sort_values(verdicts.KEY, kind="stable", ignore_index=True)
    pd.testing.assert_frame_equal(merged, expected, check_dtype=True)


def test_a_row_of_another_image_is_refused() -> None:
    tables = Tables(ImageDigests(np.array([3, 4, 9])))
    tables.append(rows([3, 4]))
    with pytest.raises(UserError, match="image 4 stands for two different images"):
        tables.append(rows([3, 4]).assign(input_sha256=digests([3, 5])))


def test_pairs_and_images_are_found_where_they_are() -> None:
    """Against dictionaries; the first place of a pair stays."""
    random, places, truth = np.random.default_rng(1), PairPlaces(), dict[tuple[int, float], tuple[int, int]]()
    for part in range(40):
        pairs = [(int(random.integers(300)), float(random.choice([-1.0, 0.5, 2.0]))) for _ in range(17)]
        places.add(pairs, part)
        for row, pair in enumerate(pairs):
            truth.setdefault(pair, (part, row))
    assert len(places) == len(truth) and all(places[pair] == place for pair, place in truth.items())
    assert (301, 0.5) not in places and (3, 7.0) not in places
    index = random.permutation(1000)[:200]
    for found in (ImagePlaces(index), ImagePlaces(np.sort(index))):
        known = index if found._order is not None else np.sort(index)
        assert (known[found(index)] == index).all()
    with pytest.raises(KeyError):
        ImagePlaces(index)([2000])


def test_survival_is_that_of_the_definition() -> None:
    """The largest budget that an image survived and below which nothing broke it; without a budget, an attack decides every eps."""
    random, runs, truth = np.random.default_rng(2), Runs(30), [dict[float, float]() for _ in range(30)]
    for _ in range(60):
        some = random.permutation(30)[:7]
        budgets = random.choice([0.5, 1.0, 2.0, np.inf], 7, p=[0.4, 0.3, 0.25, 0.05])
        radii = np.where(random.random(7) < 0.3, random.random(7) * np.minimum(budgets, 3), np.inf)
        runs.note(some, budgets, radii)
        for image, budget, radius in zip(some, budgets, radii, strict=True):
            truth[image][float(budget)] = float(radius)
    for image, ran in enumerate(truth):
        found = min(ran.values(), default=np.inf)
        held = [one for one, radius in ran.items() if np.isinf(one) or (np.isinf(radius) and one < found)]
        assert runs.survived(np.array([image]))[0] == max(held, default=-np.inf)
        assert all(runs.done(image, one) == (one in ran) for one in (0.5, 1.0, 2.0, 3.0, np.inf))


def test_few_finished_parts_are_in_memory_and_all_are_read(tmp_path: Path) -> None:
    identity = {"job": "attack"}
    folder = tmp_path / digest_of(identity, 32)
    cache, tables = RowCache(folder), [attacked(np.arange(10 * n, 10 * n + 10), 0.5, n) for n in range(12)]
    for table in tables:
        cache.put(Part(table, Noticed()), identity)
    assert len(cache._held) == MOST
    for again in (cache, RowCache(folder)):
        for table in tables:
            taken = again.take([(index, 0.5) for index in table["index"].tolist()[::-1]]).table
            pd.testing.assert_frame_equal(taken.astype(table.dtypes), table[::-1].reset_index(drop=True))
        assert len(again._held) == MOST


def test_a_job_is_computed_in_the_pieces_that_memory_holds() -> None:
    """Of a device that holds 5 images: the same rows in their order, the size is found once, and one image too many is an error."""
    asked, halving = list[int](), Halving()

    def compute(places: Sequence[int]) -> Part:
        asked.append(len(places))
        if len(places) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return Part(attacked(np.array(places), 0.5, 1), Noticed(outside={"pgd": (places[0],)}, failed=("line",)))

    found = halving("pgd", 23, compute)
    pd.testing.assert_frame_equal(found.table[["index"]], pd.DataFrame({"index": np.arange(23)}))
    assert asked == [23, 11, 5, 5, 5, 5, 3] and found.noticed.outside == {"pgd": (0, 5, 10, 15, 20)}
    assert found.noticed.failed == ("line",) and "out of memory with 11 images at once" in found.noticed.said[-1]
    asked.clear()
    halving("pgd", 12, compute)
    assert asked == [5, 5, 2]  # as found before; another method begins whole
    halving("ddn", 7, compute)
    assert asked[3] == 7

    def never(places: Sequence[int]) -> Part:
        raise MemoryError

    with pytest.raises(MemoryError):
        halving("never", 4, never)


def test_a_table_of_several_row_groups_is_read_as_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustbench_rkhs.verdicts.store.GROUP", 7)
    table = verdicts.merge([rows(np.arange(30)), attacked(np.arange(30), 0.5, 1)])
    verdicts.write_part(Part(table), tmp_path / "part.parquet")
    assert pq.ParquetFile(tmp_path / "part.parquet").num_row_groups == 9
    pd.testing.assert_frame_equal(verdicts.read_part(tmp_path / "part.parquet", False).table, table)


def test_images_of_a_memory_map_are_those_of_the_array(tmp_path: Path) -> None:
    """In any order, some twice: more of them than are read between two releases of the map's pages."""
    np.save(tmp_path / "x.npy", np.random.default_rng(3).integers(0, 256, (100, 5, 4), dtype=np.uint8))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    stream, some = stream_of_array(mapped, "x"), np.random.default_rng(4).integers(0, 100, 70)
    expected = torch.from_numpy(np.load(tmp_path / "x.npy")[some, None].astype(np.float32) / np.float32(255))
    assert torch.equal(stream[some], expected) and len(stream[np.array([], dtype=int)]) == 0
