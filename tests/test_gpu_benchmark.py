"""The stages of benchmarks/gpu.py: each has its clock, a failing or hanging one stops none, and what is done is not run again."""

import json
import sys
import tarfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu
    import gpu_stages

    def fine(stage):
        stage.say(found=1)
        folder = stage.out / "checkpoints" / "one"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text("{}")
        (folder / "resume.pt").write_text("large")

    def fails(stage):
        stage.say(half=2)
        raise ValueError("broken on purpose")

    def hangs(stage):
        stage.say(begun=True)
        time.sleep(60)

    monkeypatch.setattr(gpu_stages, "RUNS", {"fine": fine, "fails": fails, "hangs": hangs, "last": fine})
    monkeypatch.setattr(gpu, "STAGES", {"fails": 1.0, "hangs": 1.0, "fine": 1.0, "last": 1.0})
    monkeypatch.setattr(gpu, "GRACE", 1.0)
    return gpu


def run(gpu, monkeypatch, out, *flags):
    command = ["gpu.py", "--out", str(out), "--device", "cpu", "--pack", str(out / "pack"), *flags]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as left:
        gpu.main()
    return left.value.code


def lines(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_stages_fail_alone_and_are_done_once(gpu, monkeypatch, tmp_path, capsys):
    started = time.monotonic()
    assert run(gpu, monkeypatch, tmp_path, "--stages", "fails,hangs,fine", "--seconds", "6") == 1
    assert time.monotonic() - started < 25
    failed, stopped, done = lines(tmp_path)
    assert failed["state"] == "failed" and failed["half"] == 2 and "broken on purpose" in failed["log"]
    assert stopped["state"] == "stopped" and stopped["begun"] and stopped["seconds"] < stopped["given"] + 5
    assert done["state"] == "done" and done["found"] == 1
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [failed, stopped, done]
    assert run(gpu, monkeypatch, tmp_path, "--stages", "fine,last", "--seconds", "4") == 0
    assert [line["stage"] for line in lines(tmp_path)] == ["fails", "hangs", "fine", "last"]


def test_the_archive_comes_in_pieces_and_leaves_what_is_large_at_home(gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "PIECE", 4096)
    run(gpu, monkeypatch, tmp_path, "--stages", "fine", "--seconds", "3")
    pieces = sorted((tmp_path / "pack").glob("gpu.tar.*"))
    assert len(pieces) > 1
    whole = tmp_path / "whole.tar"
    whole.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    with tarfile.open(whole) as archive:
        names = archive.getnames()
    assert "checkpoints/one/config.json" in names and "results.jsonl" in names and not any("resume" in name for name in names)


def test_the_time_that_is_left_is_shared(gpu):
    meant = {"a": 10.0, "b": 30.0}
    assert gpu.shared(100.0, ["a", "b"], meant) == 25.0 and gpu.shared(80.0, ["b"], meant) == 80.0
