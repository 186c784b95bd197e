"""Sweeps: every point once, by any number of workers, killed or not; picked on validation; fronts as brute force has them."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from test_cli import rkhs

from robustbench_rkhs.data.sets import NPZ
from robustbench_rkhs.evaluation.engine_choice import Ranks, Ray, Submitit
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.parsing import parse
from robustbench_rkhs.reports import sweep as report_module
from robustbench_rkhs.reports.pareto import pareto
from robustbench_rkhs.reports.sweep import summarised
from robustbench_rkhs.runtime.seals import SetAside
from robustbench_rkhs.sweep import Plan, Sweep, Worker, swept, work
from robustbench_rkhs.sweep import trials as trials_module
from robustbench_rkhs.sweep.journal import FileLock, Journal, setting_of
from robustbench_rkhs.training import checkpoint
from robustbench_rkhs.training.recipe import TrainRecipe

GRID = {"optimizer.lr": [0.001, 0.01], "penalties.0.weight": [0.0, 0.1]}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with tiny separable images in mine.npz and a recipe of a linear network, a tenth of a second a training."""
    monkeypatch.setattr(report_module, "draw_sweep", lambda report, stem: [])  # most of the time; undone where it is tested
    generator = np.random.default_rng(0)
    y = np.arange(120) % 3
    x = np.clip(
        generator.normal(0.4, 0.05, (120, 1, 3, 3)) + 0.3 * (np.arange(9).reshape(1, 1, 3, 3) // 3 == y[:, None, None, None]), 0, 1
    )
    write_npz(tmp_path / "mine.npz", x, y)
    recipe = {
        "data": {"name": "npz", "path": str(tmp_path / "mine.npz"), "validation": 40},
        "network": {"name": "mlp", "hidden": [4]},
        "penalties": [{"name": "gradient", "weight": 0.0}],
        "optimizer": {"name": "adam", "lr": 0.01},
        "epochs": 2,
        "batch_size": 40,
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(recipe))
    return tmp_path


def write_npz(path, x, y, poisoned=False):
    x, y = x.astype(np.float32), y.astype(np.int64)
    x_test, y_test = (1 - x[::-1], (y + 1) % 3) if poisoned else (x, y)
    np.savez(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test)


def sweep(home, **fields):
    stored = {"recipe": str(home / "base.yaml"), "vary": GRID, "eps": 0.1, "steps": 2} | fields
    (home / "tiny.yaml").write_text(yaml.safe_dump(stored))
    return Plan(parse(Sweep, stored, "tiny.yaml"))


def done(home, plan, where="out"):
    return work(plan, "tiny", home / where, home / where / "reports", device="cpu", command="test")


def test_grid_is_each_point_once_and_the_report_is_rebuilt(home, monkeypatch):
    monkeypatch.undo()
    found = done(home, sweep(home, seeds=[0, 1]))
    settings = [tuple(row["setting"].values()) for row in found["settings"]]
    assert settings == [(0.001, 0.0), (0.001, 0.1), (0.01, 0.0), (0.01, 0.1)] and found["finished"]
    assert [run["seed"] for row in found["settings"] for run in row["runs"]] == [0, 1] * 4
    table = pd.read_csv(home / "out/results.csv")
    assert len(table) == 8 and table["weights"].nunique() == 8
    for row in found["settings"]:  # the mean of what each stored model really scores
        scores = []
        for run in row["runs"]:
            stored = TrainRecipe.read(f"{run['folder']}/recipe.yaml")
            assert stored.optimizer.lr == row["setting"]["optimizer.lr"] and stored.seed == run["seed"]
            split = stored.data.load().validation
            with torch.no_grad():
                scores.append((checkpoint.load(run["folder"]).model(split.x).argmax(1) == split.y).double().mean().item())
        assert row["clean"] == pytest.approx(np.mean(scores)) and row["clean_worst"] == pytest.approx(min(scores))
        assert row["clean_std"] == pytest.approx(np.std(scores, ddof=1))
        assert 0 <= row["certified"] <= row["robust"] <= row["clean"]
    picked = [row for row in found["settings"] if row["picked"]]
    assert len(picked) == 1 and picked[0]["robust"] == max(row["robust"] for row in found["settings"])
    best = TrainRecipe.read(home / "out/best.yaml")
    assert Path(picked[0]["runs"][0]["folder"], "recipe.yaml").read_text().startswith(best.yaml())
    before = {path: path.read_bytes() for path in (home / "out/reports").glob("tiny.*")}
    assert {path.suffix for path in before} == {".png", ".pdf", ".svg", ".csv", ".md"}
    done(home, sweep(home, seeds=[0, 1]))
    assert {path: path.read_bytes() for path in before} == before


def test_two_workers_share_a_grid_and_a_killed_one_is_taken_up(home):
    rates = [0.001, 0.002, 0.003, 0.004, 0.005, 0.006]
    plan = sweep(home, vary={"optimizer.lr": rates}, settings={"epochs": 4})
    fork = multiprocessing.get_context("fork")  # a fresh interpreter would import torch again, for seconds
    workers = [fork.Process(target=done, args=(home, plan)) for _ in range(2)]
    for worker in workers:
        worker.start()
    until = time.monotonic() + 60
    while len(list((home / "out/trials").glob("*/seed-0/metrics.jsonl"))) < 2 and time.monotonic() < until:
        time.sleep(0.005)
    os.kill(workers[0].pid, signal.SIGKILL)
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [-signal.SIGKILL, 0]
    found = done(home, plan)  # takes up what may have been left; does nothing where the other worker did
    assert found["finished"] and [row["setting"]["optimizer.lr"] for row in found["settings"]] == rates
    assert {row["state"] for row in found["settings"]} == {"complete"} and all(len(row["runs"]) == 1 for row in found["settings"])
    untouched = done(home, plan, "alone")
    assert [row["runs"][0]["weights"] for row in untouched["settings"]] == [row["runs"][0]["weights"] for row in found["settings"]]
    states = [json.loads(line) for line in (home / "out/journal.log").read_text().splitlines()]
    finished = [line["trial_id"] for line in states if line["op_code"] == 6 and line["state"] == 1]
    assert sorted(finished) == list(range(6))  # each told once


def test_a_left_trial_is_retried_and_a_finished_one_is_not(home, monkeypatch):
    plan, trained = sweep(home), []
    plain = trials_module.train

    def killed(recipe, folder, **options):
        trained.append(recipe.yaml())
        if len(trained) == 2:
            raise KeyboardInterrupt
        return plain(recipe, folder, **options)

    monkeypatch.setattr(trials_module, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        done(home, plan)
    with (home / "out/journal.log").open("ab") as file:
        file.write(b'{"op_code": 6, "wor')  # a machine that lost power while it wrote
    found = done(home, plan)
    assert found["finished"] and len(trained) == 5 and len(set(trained)) == 4 and trained[1] == trained[2]


def test_a_running_trial_of_a_living_worker_is_left_alone(home):
    plan = sweep(home)
    about = {"data": "", "data_digest": ""}
    first, second = Journal(home / "out", plan, dict(about)), Journal(home / "out", plan, dict(about))
    (one, lock), (two, other) = first.claim(), second.claim()
    assert (one.number, two.number) == (0, 1)
    lock.release()
    again, lock = second.claim()
    assert again.number == 0 and setting_of(plan, again.params) == plan.grid[0]
    assert not FileLock(lock.path).take()
    lock.release(), other.release()


def test_a_changed_sweep_is_refused_by_name(home):
    done(home, sweep(home))
    with pytest.raises(UserError, match=r"sweep.eps: 0.1 before, 0.2 now"):
        done(home, sweep(home, eps=0.2))
    recipe = yaml.safe_load((home / "base.yaml").read_text())
    (home / "base.yaml").write_text(yaml.safe_dump(recipe | {"epochs": 3}))
    with pytest.raises(UserError, match=r"recipe.epochs: 2 before, 3 now"):
        done(home, sweep(home))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"sede": 1}, "did you mean 'seed'"),
        ({"vary": {"optimiser.lr": [0.1]}}, "did you mean '--optimizer'"),
        ({"vary": {"optimizer.lrr": [0.1]}}, "did you mean 'lr'"),
        ({"vary": {"optimizer.lr": [0.1, -1.0]}}, "greater than"),
        ({"vary": {"penalties.1.weight": [0.1]}}, "position from 0 to 0"),
        ({"vary": {"optimizer.lr": {"low": 0.1, "high": 1.0}}}, "a grid needs a list"),
        ({"vary": {"optimizer.lr": {"low": 0.1, "hihg": 1.0}}, "sampler": "tpe", "trials": 2}, "did you mean 'high'"),
        ({"vary": {"optimizer.lr": {"low": -1, "high": 1.0}}, "sampler": "tpe", "trials": 2}, "greater than"),
        ({"vary": {"optimizer.lr": {"low": 0, "high": 1, "log": True}}, "sampler": "tpe", "trials": 2}, "log needs low > 0"),
        ({"vary": {"seed": [0, 1]}}, "give `seeds` instead"),
        ({"vary": {"data.validation": [10, 20]}}, "different images"),
        ({"vary": {"optimizer.lr": [0.1, 0.1]}}, "different values"),
        ({"trials": 3}, "has 4 points"),
        ({"sampler": "random"}, "needs a number of trials"),
        ({"settings": {"data.validation": 0}}, "validation"),
        ({"settings": {"network": {"name": "vgg"}}}, "at least 32x32"),
        ({"pick": "validation_certified", "prune": {}}, "leave prune out"),
        ({"eps": -1}, "greater than"),
    ],
)
def test_bad_sweeps_are_one_line_before_anything_is_trained(home, fields, words):
    stored = {"recipe": str(home / "base.yaml"), "vary": GRID, "eps": 0.1} | fields
    (home / "bad.yaml").write_text(yaml.safe_dump(stored))
    _, err = rkhs("sweep", "--sweep", "bad.yaml", folder=home, code=2)
    assert words in err and err.startswith("error: ") and len(err.splitlines()) == 1
    assert not (home / "sweeps").exists()


def test_ranks_of_torchrun_are_workers_that_train_alone(home, monkeypatch):
    """None takes its training for a part of one; without the engine that would happen, and is refused."""
    plan, launched = sweep(home, vary={"optimizer.lr": [0.01, 0.02]}), {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="needs --engine torchrun"):
        done(home, plan)
    worker = Worker(plan, "tiny", home / "out", home / "out/reports", "cpu", "test")
    found = swept(Ranks(), worker)
    assert found["finished"] and [row["state"] for row in found["settings"]] == ["complete"] * 2
    assert {name: os.environ[name] for name in launched} == launched
    with pytest.raises(UserError, match="submitted by a command"):
        swept(Submitit(), worker)


def untimed(settings):
    """The settings of a report without the seconds that each run took."""
    return [
        one | {"runs": [{key: value for key, value in run.items() if key != "seconds"} for run in one["runs"]]} for one in settings
    ]


def test_tasks_of_a_cluster_train_what_one_process_would(home, monkeypatch):
    """Nothing is trained in this process; the report is the same."""
    pytest.importorskip("ray", reason="ray is not installed")
    plan = sweep(home, vary={"optimizer.lr": [0.01, 0.02]})
    monkeypatch.chdir(home)
    here = work(plan, "tiny", Path("out"), Path("out/reports"), device="cpu", command="test")
    (home / "out").rename(home / "here")
    monkeypatch.setattr(trials_module, "train", None)
    there = swept(Ray(), Worker(plan, "tiny", Path("out"), Path("out/reports"), "cpu", "test"))
    assert there["finished"] and untimed(there["settings"]) == untimed(here["settings"])
    theirs, own = (
        pd.read_csv(home / folder / "results.csv").drop(columns="seconds", errors="ignore") for folder in ("out", "here")
    )
    pd.testing.assert_frame_equal(theirs, own)


def test_a_job_array_of_one_machine_trains_what_one_process_would(home):
    pytest.importorskip("submitit", reason="submitit is not installed")
    plan = sweep(home, vary={"optimizer.lr": [0.01]})
    (home / "rkhs-sweep").write_text("from robustbench_rkhs.cli.sweep import main\n\nmain()\n")  # what a task starts
    engine = ("--engine", "submitit:cluster=local,tasks=1", "--device", "cpu", "--json")
    out, err = rkhs("sweep", "--sweep", "tiny.yaml", *engine, folder=home)
    (there,), (here,) = json.loads(out)["settings"], done(home, plan)["settings"]
    assert "submitted as" in err and (home / "reports/local/submitit").is_dir()
    assert there["runs"][0]["weights"] == here["runs"][0]["weights"] and there["picked"]


def test_the_command(home):
    sweep(home, vary={"optimizer.lr": [0.01]})
    out, err = rkhs("sweep", "--sweep", "tiny.yaml", "--epochs", "1", "--device", "cpu", "--json", folder=home)
    found = json.loads(out)
    assert found["settings"][0]["picked"] and "picked by validation_robust" in err and "rkhs-train --model" in err
    assert all((home / path).stat().st_size for path in found["files"])
    assert len((home / "sweeps/tiny/trials/0000/seed-0/metrics.jsonl").read_text().splitlines()) == 1
    rkhs("train", "--model", "sweeps/tiny/best.yaml", "--out", "again", "--device", "cpu", folder=home)
    assert checkpoint.load(home / "again").weights == found["settings"][0]["runs"][0]["weights"]


def test_picks_by_validation_alone(home):
    plan = sweep(home)
    clean = done(home, plan)
    arrays = np.load(home / "mine.npz")
    write_npz(home / "mine.npz", arrays["x_train"], arrays["y_train"], poisoned=True)
    poisoned = done(home, plan, "poisoned")
    for one, other in zip(clean["settings"], poisoned["settings"], strict=True):
        assert {key: one[key] for key in ("clean", "robust", "certified", "picked")} == {
            key: other[key] for key in ("clean", "robust", "certified", "picked")
        }


def test_test_pixels_are_never_looked_at(home, monkeypatch):
    plan = sweep(home)
    whole = done(home, plan)
    plain = NPZ._part

    def blanked(self, part, *arguments):
        split = plain(self, part, *arguments)
        if part == "test":
            split.x.fill_(torch.nan)
            split.y.fill_(-1)
        return split

    monkeypatch.setattr(NPZ, "_part", blanked)
    assert [row["runs"][0]["weights"] for row in done(home, plan, "blank")["settings"]] == [
        row["runs"][0]["weights"] for row in whole["settings"]
    ]


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_drawn_settings(home, sampler):
    vary = {
        "optimizer.lr": {"low": 1e-4, "high": 1e-1, "log": True},
        "batch_size": {"low": 20, "high": 40, "int": True},
        "penalties": [[], [{"name": "gradient", "weight": 0.1}]],
    }
    plan = sweep(home, vary=vary, sampler=sampler, trials=5, startup=2, settings={"epochs": 1})
    found = done(home, plan)
    drawn = [row["setting"] for row in found["settings"]]
    assert len(drawn) == 5 and len({one["optimizer.lr"] for one in drawn}) == 5
    assert all(1e-4 <= one["optimizer.lr"] <= 0.1 and one["batch_size"] in range(20, 41) for one in drawn)
    assert all(one["penalties"] in vary["penalties"] for one in drawn)
    assert [row["setting"] for row in done(home, plan, "again")["settings"]] == drawn
    other = sweep(home, vary=vary, sampler=sampler, trials=5, startup=2, settings={"epochs": 1}, seed=1)
    assert [row["setting"] for row in done(home, other, "other")["settings"]] != drawn


def test_tpe_follows_what_scored_well(home):
    plan = sweep(home, vary={"optimizer.lr": {"low": 0.0001, "high": 1.0}}, sampler="tpe", trials=30, startup=8)
    journal = Journal(home / "out", plan, {"data": "", "data_digest": ""})
    drawn = []
    while claimed := journal.claim():
        trial, lock = claimed
        drawn.append(trial.params["optimizer.lr"])
        journal.study.tell(trial, -abs(drawn[-1] - 0.7))
        lock.release()
    assert np.abs(np.array(drawn[-10:]) - 0.7).mean() < np.abs(np.array(drawn[:8]) - 0.7).mean() / 2


def test_pruning_stops_what_falls_behind(home):
    vary = {"optimizer.lr": [0.05, 0.04, 0.03, 1e-9]}
    plan = sweep(home, vary=vary, settings={"epochs": 6}, pick="validation_clean", prune={"startup": 2, "warmup": 1})
    found = done(home, plan)
    assert [row["state"] for row in found["settings"][:2]] == ["complete", "complete"]
    last = found["settings"][3]
    assert last["state"] == "pruned" and last["clean"] is None and not last["picked"] and "median" in last["reason"]
    told = (home / "out/trials/0003/seed-0/metrics.jsonl").read_text().splitlines()
    assert len(told) == 2  # the warmup and the epoch that was too low


def test_a_refused_certificate_is_no_score(home, monkeypatch):
    def refuse(plan, model, images):
        return (None, "layer 3 has no rule") if len(images) > 1 else (0.0, "")

    plan = sweep(home, vary={"optimizer.lr": [0.01, 0.02]}, pick="validation_certified")
    assert any(row["picked"] for row in done(home, plan)["settings"])
    monkeypatch.setattr(trials_module, "certified_share", refuse)
    found = done(home, plan, "refused")
    assert all(row["state"] == "failed" and "no score: layer 3 has no rule" in row["reason"] for row in found["settings"])
    assert all(row["certified"] is None and not row["picked"] for row in found["settings"])
    assert not (home / "refused/best.yaml").exists() and "No setting has a score" in (home / "refused/reports/tiny.md").read_text()


def test_failed_trials_say_why(home):
    found = done(home, sweep(home, vary={"optimizer.lr": [0.01, 1e30]}, settings={"optimizer": {"name": "sgd"}, "epochs": 3}))
    good, bad = found["settings"]
    assert bad["state"] == "failed" and "not finite" in bad["reason"] and bad["robust"] is None
    assert good["picked"]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_front_is_what_brute_force_finds(points):
    points = [(float(x), float(y)) for x, y in points]
    brute = [not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points) for x, y in points]
    assert pareto(points) == brute


def test_ties_go_to_clean_then_to_the_earlier_trial():
    def row(trial, clean, robust):
        runs = [{"clean": clean, "robust": robust, "certified": None}]
        return {"trial": trial, "state": "complete", "reason": "", "setting": {}, "runs": runs}

    found = summarised([row(0, 0.8, 0.5), row(1, 0.9, 0.5), row(2, 0.9, 0.5), row(3, 1.0, 0.4)], "robust")
    assert [one["picked"] for one in found] == [False, True, False, False]
    assert [one["front"] for one in found] == [False, True, True, True]
    assert not any(one["picked"] for one in summarised([row(0, 0.8, 0.5)], "certified"))


def flipped(path, at):
    spoilt = bytearray(path.read_bytes())
    spoilt[at] ^= 2
    path.write_bytes(spoilt)


def test_damaged_journals_scores_and_checkpoints_are_set_aside_and_done_again(home):
    plan = sweep(home, vary={"optimizer.lr": [0.001, 0.01]})
    first = done(home, plan)
    assert done(home, plan) == first
    run = home / "out/trials/0001/seed-0"
    size = (home / "out/journal.log").stat().st_size
    for path, at in [(home / "out/journal.log", size * part // 7) for part in range(1, 7)] + [(run / "score.json", 20)]:
        flipped(path, at)
        if path.name == "score.json":
            (home / "out/journal.log").unlink()  # the journal has the scores, too
        with pytest.warns(SetAside, match=f"{path.name}: damaged"):
            assert done(home, plan) == first
    (home / "out/journal.log").unlink()
    (run / "score.json").unlink()
    flipped(run / "model.safetensors", -3)
    with pytest.warns(SetAside, match="model.safetensors: damaged"):
        assert [row["robust"] for row in done(home, plan)["settings"]] == [row["robust"] for row in first["settings"]]
    assert checkpoint.load(run)
