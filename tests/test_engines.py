"""Engines: the same table from ranks that share a folder and from a cluster, whichever of them are killed; and where a job ran."""

import contextlib
import json
import multiprocessing
import os
import random
import resource
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from heard import messages_into
from torch import nn

from robustbench_rkhs import verdicts
from robustbench_rkhs.attacks import DDN, SuperDeepFool
from robustbench_rkhs.certificates import CrownCertificate, MarginCertificate
from robustbench_rkhs.evaluation import engines
from robustbench_rkhs.evaluation.engine_choice import Here, Ranks, Ray, Submitit, engine_from
from robustbench_rkhs.evaluation.engines.cluster import _connect
from robustbench_rkhs.evaluation.engines.ranks import VARIABLES, Rank
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.events import listening
from robustbench_rkhs.runtime.files import Unwritable

SETTINGS = {
    "eps": (0.02, 0.06, 0.2),
    "attacks": (SuperDeepFool(), DDN(steps=6)),
    "certificates": (MarginCertificate(), CrownCertificate(search=False)),
    "diagnostics": False,
    "block": 5,
    "rechecked": 3,
    "seed": 3,
}


@pytest.fixture(scope="module")
def scene():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    x = torch.rand(18, 1, 4, 4)
    with torch.no_grad():
        model[5].bias -= model(x).mean(0)  # every class is predicted
        return model, (x, model(x).argmax(1))


@pytest.fixture(scope="module")
def whole(scene):
    done = evaluate(*scene, workers=1, **SETTINGS)
    assert done.about.complete
    return verdicts.digest(done.table)


def rank(number, count, scene, folder, say, spoil):
    """One of several processes that run the same evaluation."""
    os.environ.update({"RKHS_RANK": str(number), "RKHS_RANKS": str(count)})
    torch.set_num_threads(1)
    spoil(number)
    try:
        done = evaluate(*scene, folder=folder, engine=Ranks(), **SETTINGS)
        say.put((number, done.about.complete, verdicts.digest(done.table)))
    except Unwritable as error:
        say.put((number, False, str(error)))


def slow_or_full(number):
    """The shared folder as rank 0 sees it is full from the first part on; as the others see it, each file takes its time."""
    if number == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400, resource.RLIM_INFINITY))
        return
    plain = os.replace

    def replace(*paths):
        time.sleep(0.05)
        plain(*paths)

    os.replace = replace


def ranks(count, scene, folder, spoil=lambda number: None):
    """So many of them, running, and the queue in which each tells its table."""
    context = multiprocessing.get_context("fork")
    said = context.Queue()
    started = [context.Process(target=rank, args=(number, count, scene, folder, said, spoil)) for number in range(count)]
    for process in started:
        process.start()
    return started, said


def logged(folder):
    """The lines of all logs of jobs."""
    return [json.loads(line) for path in Path(folder).glob("model/jobs/*.jsonl") for line in path.read_text().splitlines()]


def test_ranks_share_the_work_and_each_has_the_whole_table(scene, whole, tmp_path):
    processes, said = ranks(2, scene, tmp_path)
    told = [said.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    assert [(complete, digest) for _, complete, digest in told] == [(True, whole)] * 2
    jobs = [(line["job"], line["pid"]) for line in logged(tmp_path) if line["phase"] != "predict"]
    assert len({name for name, _ in jobs}) == len(jobs)  # each was computed once, by one of them
    assert {pid for _, pid in jobs} <= {process.pid for process in processes}
    assert not list(tmp_path.glob("**/*.lock"))
    assert len(list(tmp_path.glob("model/*.parquet"))) == 1


def test_ranks_that_are_killed_lose_and_double_nothing(scene, whole, tmp_path):
    chance = random.Random(7)
    for _ in range(3):
        processes, _ = ranks(2, scene, tmp_path)
        time.sleep(chance.uniform(0.05, 0.6))
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
    processes, said = ranks(2, scene, tmp_path)
    time.sleep(0.3)
    os.kill(processes[0].pid, signal.SIGKILL)  # what it had in hand is taken over
    told = said.get(timeout=120)
    for process in processes:
        process.join()
    assert told[1:] == (True, whole)
    assert verdicts.digest(evaluate(*scene, workers=1, folder=tmp_path, **SETTINGS).table) == whole


def test_a_rank_whose_disk_is_full_says_so_and_the_others_finish_on_a_slow_one(scene, whole, tmp_path):
    processes, said = ranks(2, scene, tmp_path, slow_or_full)
    told = dict((number, rest) for number, *rest in (said.get(timeout=120) for _ in processes))
    for process in processes:
        process.join()
    assert told[1] == [True, whole] and not told[0][0]
    assert told[0][1].startswith(f"cannot write {tmp_path}") and "\n" not in told[0][1]
    assert not list(tmp_path.glob("**/*.part"))


def test_a_rank_is_told_by_its_launcher():
    for number, world in VARIABLES:
        assert Rank.mine({number: "1", world: "4"}) == Rank(1, 4)
        for wrong in ("4", "-1", "one", ""):
            with pytest.raises(UserError, match=f"expected {number} from 0 to below {world}, found '{wrong}' and '4'"):
                Rank.mine({number: wrong, world: "4"})
    with pytest.raises(UserError, match="no rank: start it by torchrun"):
        Rank.mine({})


def test_an_engine_is_chosen_by_name_and_options():
    assert engine_from("here") == Here() and engine_from("ray:gpus=0.5,cpus=2") == Ray(gpus=0.5, cpus=2)
    assert engine_from("submitit:tasks=8,cluster=local") == Submitit(tasks=8, cluster="local")
    for text, line in (("rey", "did you mean 'ray'"), ("ray:gpu=1", "gpu"), ("submitit:tasks=0", "tasks"), ("ray:gpus=-1", "gpus")):
        with pytest.raises(UserError, match=line) as refused:
            engine_from(text)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("engine", "line"), [(Ranks(), "need"), (Submitit(), "submitted by a command")])
def test_engines_that_cannot_compute_here_are_refused(scene, engine, line, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=line):
        evaluate(*scene, engine=engine, **SETTINGS)
    with pytest.raises(UserError, match="leave out --workers"):
        evaluate(*scene, engine=engine, workers=2, **SETTINGS)


def test_a_cluster_finishes_what_two_killed_ranks_began_and_says_what_it_computed(scene, whole, tmp_path):
    pytest.importorskip("ray", reason="ray is not installed")
    processes, _ = ranks(2, scene, tmp_path)
    until = time.monotonic() + 60
    while len(list(tmp_path.glob("model/parts/**/*.parquet"))) < 3 and time.monotonic() < until:
        time.sleep(0.005)
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    done = evaluate(*scene, folder=tmp_path, engine=Ray(), **SETTINGS)
    assert done.about.complete and verdicts.digest(done.table) == whole
    lines = [line for line in logged(tmp_path) if line["phase"] != "predict"]
    assert {line["engine"] for line in lines} == {"torchrun", "ray"} and os.getpid() not in {line["pid"] for line in lines}


def test_the_simulation_of_many_workers_agrees_with_closed_forms(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    from engine_simulation import Fleet, efficiency, enlarged, limit, wall

    equal = [[1.0] * 12, [2.0] * 6]
    assert wall(equal, Fleet(3, 0.0)) == 4 + 4 and efficiency(equal, Fleet(3, 0.0)) == 1
    assert wall(equal, Fleet(3, 0.5)) == 4 * 1.5 + 2 * 2.5
    assert wall([[5.0, 1.0, 1.0]], Fleet(100, 0.0)) == 5  # no worker helps the longest job
    assert wall([[1.0] * 100], Fleet(1000, 0.0, serial=0.1)) == pytest.approx(100 * 0.1 + 1)  # one job after the other is given out
    assert limit([[1.0] * 100], Fleet(1000, 0.0, serial=0.1)).startswith("the process that gives out")
    assert wall([[1.0] * 4], Fleet(4, 0.0, slow=1.0)) == 4
    assert [len(phase) for phase in enlarged(equal, 10)] == [120, 60]


def test_a_cluster_of_this_machine_that_does_not_start_is_tried_once_more():
    """Under load Ray's own time limits end a start; a cluster that was named is not begun again."""
    for address, failures, tries in ((None, 1, 2), (None, 2, 2), ("ray://there", 1, 1)):
        calls = list[str | None]()

        def init(address, calls=calls, failures=failures, **asked):
            calls.append(address)
            if len(calls) <= failures:
                raise RuntimeError("timed out\nlater lines")

        said = []
        with listening(messages_into(said)), contextlib.ExitStack() as stack:
            if failures == tries:
                stack.enter_context(pytest.raises(UserError, match=r"^--engine ray: no cluster at .*: timed out$"))
            _connect(SimpleNamespace(init=init, shutdown=lambda: None), address)
        assert calls == [address] * tries and len(said) == tries - 1


def test_every_file_of_the_engines_is_short():
    files = sorted(Path(engines.__path__[0]).glob("*.py"))
    assert len(files) > 9
    assert not {file.name: lines for file in files if (lines := len(file.read_text().splitlines())) >= 150}
