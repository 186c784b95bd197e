"""Parts exchanged through an object store: nothing is computed twice, what is damaged is done again, claims are held by one."""

import json
import random
import threading
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from torch import nn

from robustbench_rkhs import verdicts
from robustbench_rkhs.attacks import DDN, SuperDeepFool
from robustbench_rkhs.certificates import CrownCertificate
from robustbench_rkhs.evaluation.engine_choice import Ranks
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime import locks, object_store
from robustbench_rkhs.runtime.files import Unwritable
from robustbench_rkhs.runtime.object_store import ObjectStore
from robustbench_rkhs.zoo import load_model

URL = "memory://bucket/evaluations"
SETTINGS: dict[str, Any] = {"eps": (0.02, 0.2), "attacks": (SuperDeepFool(), DDN(steps=4)), "block": 6, "diagnostics": False}
SETTINGS["certificates"] = (CrownCertificate(search=False),)


@pytest.fixture(autouse=True)
def empty():
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(scope="module")
def scene():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    x = torch.rand(12, 1, 4, 4)
    with torch.no_grad():
        return model, (x, model(x).argmax(1))


def computed(folder: Path) -> list[str]:
    lines = [json.loads(line) for path in folder.glob("model/jobs/*.jsonl") for line in path.read_text().splitlines()]
    return [line["job"] for line in lines if line["phase"] != "predict"]


def stored() -> list[str]:
    return sorted(name for name in fsspec.filesystem("memory").store if name.endswith(".parquet"))


def test_a_second_machine_reads_what_the_first_computed(scene, tmp_path, monkeypatch):
    """The same table, and the same adversarial images, from no computed job; then from ranks, which claim by URL."""
    one, two, three = ({"folder": tmp_path / name, "parts": URL, "adversarials": True, **SETTINGS} for name in ("a", "b", "c"))
    first = evaluate(*scene, **one, workers=1)
    assert len(computed(tmp_path / "a")) == len(stored()) > 3
    second = evaluate(*scene, **two, workers=1)
    assert computed(tmp_path / "b") == [] and verdicts.digest(second.table) == verdicts.digest(first.table)
    assert torch.equal(first.adversarials().images, second.adversarials().images)
    memory, (lost, spoilt) = fsspec.filesystem("memory"), stored()[:2]
    memory.store.pop(lost)
    memory.pipe_file(spoilt, b"PAR1 damaged")
    monkeypatch.setenv("RKHS_RANK", "0")
    monkeypatch.setenv("RKHS_RANKS", "2")
    with pytest.warns(UserWarning, match="damaged"):
        third = evaluate(*scene, **three, engine=Ranks(), threads=1)
    assert len(computed(tmp_path / "c")) == 2 and verdicts.digest(third.table) == verdicts.digest(first.table)
    assert not ObjectStore(URL).names("model/locks")
    evaluate(*scene, **{**one, "folder": tmp_path / "d"}, workers=1)
    assert computed(tmp_path / "d") == []  # what was damaged was put in its place


def test_a_claim_is_held_by_one_and_taken_over_when_its_holder_is_silent(monkeypatch):
    store = ObjectStore(URL)
    held = [store.claimed("locks/job") for _ in range(3)]
    (claim,) = [one for one in held if one]
    assert store.claimed("locks/job") is None and store.claimed("locks/other")
    monkeypatch.setattr(object_store, "SILENT", -1.0)
    later = store.claimed("locks/job")
    assert later is not None
    later.release()
    claim.release()
    assert store.names("locks") == ["other"] and locks.SILENT > object_store.REFRESH


@pytest.mark.parametrize("url", ["file:///tmp/x", "https://example.org/x", "sftp://host/x", "reports", "simplecache::memory://x"])
def test_places_that_do_not_put_files_whole_are_refused_by_name(url):
    with pytest.raises(UserError, match=r"expected a URL of s3, .* a disk that several machines share is a folder") as refused:
        ObjectStore(url)
    assert url in str(refused.value) and "\n" not in str(refused.value)


def test_a_store_that_cannot_be_reached_is_said_in_one_line(scene, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="expected a folder beside it"):
        evaluate(*scene, parts=URL, **SETTINGS)

    def full(*_: Any, **__: Any) -> None:
        raise OSError("quota exceeded")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "pipe_file", full)
    with pytest.raises(Unwritable, match=r"cannot write memory://bucket/evaluations/model/parts/.*: quota exceeded"):
        evaluate(*scene, folder=tmp_path, parts=URL, workers=1, **SETTINGS)


def test_many_writers_of_one_name_leave_a_whole_file_and_one_of_them_holds_the_claim(tmp_path):
    """Threads stand for machines: whatever is read meanwhile was written whole by one of them."""
    contents = [bytes([number]) * random.Random(number).randint(1, 50_000) for number in range(8)]
    claims: list[Any] = []
    seen: list[bytes] = []

    def machine(number: int) -> None:
        store, own = ObjectStore(URL), tmp_path / f"{number}.bin"
        claims.append(store.claimed("locks/job"))
        for turn in range(20):
            own.write_bytes(contents[(number + turn) % 8])
            store.put(own, "parts/one.bin")
            assert store.fetch("parts/one.bin", own)
            seen.append(own.read_bytes())

    threads = [threading.Thread(target=machine, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 160 and set(seen) <= set(contents)
    (claim,) = [one for one in claims if one]
    claim.release()


def test_a_checkpoint_is_read_by_its_url():
    """The same weights as from its folder; what is missing, damaged or of two trainings is said in one line."""
    folder, memory = Path(__file__).parent.parent / "checkpoints" / "digits_mlp", fsspec.filesystem("memory")
    url, names = "memory://bucket/checkpoints/theirs", ("config.json", "recipe.yaml", "model.safetensors")
    with pytest.raises(UserError, match=r"no checkpoint at memory://.*found no config\.json"):
        load_model(url)
    for name in names:
        memory.pipe_file(f"/bucket/checkpoints/theirs/{name}", (folder / name).read_bytes())
    named, own = load_model(url), load_model(str(folder))
    assert named.name == "theirs" and named.classes == 10
    assert all(torch.equal(one, other) for one, other in zip(named.model.parameters(), own.model.parameters(), strict=True))
    for name in (url, "hf:theirs/net"):
        with pytest.raises(UserError, match="leave out --weights"):
            load_model(name, weights=str(folder / "model.safetensors"))
    other = folder.parent / "digits_conv" / "model.safetensors"
    for spoilt in (other.read_bytes(), (folder / "model.safetensors").read_bytes()[:-1] + b"?"):
        memory.pipe_file("/bucket/checkpoints/theirs/model.safetensors", spoilt)
        with pytest.raises(UserError) as refused:
            load_model(url)
        assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="expected a URL of s3"):
        load_model("https://example.org/theirs")
