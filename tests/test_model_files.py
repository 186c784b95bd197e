"""The files that the site offers for a published model, and the commands beside them, which a visitor runs after download."""

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_cli import rkhs

from robustbench_rkhs.site.model_files import FilesOf
from robustbench_rkhs.site.site_models import site_models
from robustbench_rkhs.verdicts import BriefCache, read_adversarials

REPORTS = Path(__file__).parents[1] / "reports"


@pytest.fixture(scope="module")
def model():
    cache = BriefCache()
    (found,) = site_models([cache.read(path) for path in (REPORTS / "verdicts/digits_mlp").glob("*.parquet")]).values()
    return found


def test_the_commands_beside_the_files_of_a_published_model_accept_them_and_find_a_changed_one(model, tmp_path):
    found = FilesOf(REPORTS).of(model)
    assert sorted(one.path.name for one in found.files) == ["digits_mlp-l2.npz", "proof.json", "proof.npz"]
    assert found.picture is not None and found.picture.stat().st_size > 1000, "Nearest to falling"
    assert sum(one.path.stat().st_size for one in found.files) < 1 << 20
    for one in found.files:
        shutil.copy(one.path, tmp_path)
    checks = {one.check for one in found.files}
    assert checks == {"rkhs-verify digits_mlp-l2.npz", "rkhs-verify ."}
    said = {
        check: rkhs(shlex.split(check)[0].removeprefix("rkhs-"), *shlex.split(check)[1:], folder=tmp_path)[0] for check in checks
    }
    assert "verified" in said["rkhs-verify ."] and "0 refused" in said["rkhs-verify digits_mlp-l2.npz"]
    words = bytearray((tmp_path / "proof.npz").read_bytes())
    words[len(words) // 2] ^= 1
    (tmp_path / "proof.npz").write_bytes(words)
    with pytest.raises(AssertionError):
        rkhs("verify", ".", folder=tmp_path)


def test_the_nearest_images_are_no_nearer_than_what_is_proved(model):
    assert "/" not in (header := read_adversarials(REPORTS / "adversarials/digits_mlp-l2.npz").about).command.replace(
        "reports/", ""
    )
    assert header.others["key"] == model.key
    stored = read_adversarials(REPORTS / "adversarials/digits_mlp-l2.npz")
    table = model.domains[0].evaluation().table
    proved = table[table["kind"] == "certificate"].groupby("index")["radius"].max()
    both = proved.reindex(stored.index).to_numpy()
    known = np.isfinite(both)
    assert known.sum() >= 50 and (stored.distance_l2[known] >= both[known]).all()


def test_a_proof_of_another_function_is_not_offered(model, tmp_path):
    shutil.copytree(REPORTS / "proofs", tmp_path / "proofs")
    assert len(FilesOf(tmp_path).of(model).files) == 2
    path = tmp_path / "proofs/digits_mlp/proof.json"
    path.write_text(path.read_text().replace(model.key, "0" * 64))  # of the same weights, in another network
    assert FilesOf(tmp_path).of(model).files == ()
