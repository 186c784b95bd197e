"""Workers: the same table at any number of them, nothing done twice, and clear words where they cannot be had."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn

from robustbench_rkhs import verdicts
from robustbench_rkhs.attacks import DDN, Ensemble, FoolboxAttack, Square
from robustbench_rkhs.attacks.engine_attack import EngineAttack
from robustbench_rkhs.data.given import given_split
from robustbench_rkhs.evaluation.diagnostics.transfer import Transfer
from robustbench_rkhs.evaluation.engine_choice import Here
from robustbench_rkhs.evaluation.engines import Processes
from robustbench_rkhs.evaluation.engines.start import started
from robustbench_rkhs.evaluation.engines.worker import serve
from robustbench_rkhs.evaluation.jobs import Job
from robustbench_rkhs.evaluation.loaders import Held, Loader, RunnerMaker
from robustbench_rkhs.evaluation.recipe import EvalRecipe
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.evaluation.runner import Runner
from robustbench_rkhs.evaluation.store import Store
from robustbench_rkhs.evaluation.subject import Subject
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.children import WorkerKilled
from robustbench_rkhs.runtime.digests import weights_digest
from robustbench_rkhs.runtime.events import Message
from robustbench_rkhs.zoo import load_model
from robustbench_rkhs.zoo.loaders import Typed

PROTOCOL = (DDN(steps=8), Ensemble(version="custom", attacks=(Square(queries=20, restarts=2),)), FoolboxAttack(attack="deepfool"))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def scene(images=13):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    x = torch.rand(images, 1, 4, 4)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def queried(**settings):
    return {"eps": (0.02, 0.1, 0.3), "attacks": PROTOCOL, "certificates": ("margin",), "diagnostics": False, **settings}


@pytest.mark.parametrize(("workers", "block"), [(2, 5), (4, 5)])
def test_the_table_is_the_same_at_any_number_of_workers(workers, block, tmp_path):
    model, x, y = scene()
    saved = tmp_path / "one.npz", tmp_path / "many.npz"
    one = evaluate(model, (x, y), **queried(block=block), adversarials=saved[0])
    many = evaluate(model, (x, y), **queried(workers=workers, block=block), folder=tmp_path, adversarials=saved[1])
    assert verdicts.digest(one.table) == verdicts.digest(many.table)
    assert (verdicts.read_adversarials(saved[0]).images == verdicts.read_adversarials(saved[1]).images).all()
    assert torch.get_num_threads() == 1
    again = evaluate(
        model, (x, y), **queried(workers=workers + 1, block=block), folder=tmp_path
    )  # what they kept is read by others
    assert verdicts.digest(again.table) == verdicts.digest(one.table) and again.path == many.path


class Killer(nn.Module):
    """A model that ends its own process where it is not the one it was made in."""

    def __init__(self, model):
        super().__init__()
        self.model, self.home = model, os.getpid()

    def forward(self, x):
        if os.getpid() != self.home:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.model(x)


def test_a_model_that_kills_every_worker_is_one_clear_line(tmp_path):
    model, x, y = scene()
    with pytest.raises(WorkerKilled, match=r"prediction on 13 images .* both workers that tried it ended"):
        evaluate(Killer(model), (x, y), **queried(workers=2, certificates=()), folder=tmp_path)
    done = evaluate(model, (x, y), **queried(workers=2, certificates=()), folder=tmp_path)
    assert done.about.complete


@pytest.mark.parametrize(("deaths", "starts"), [(1, True), (3, False)])
def test_a_worker_that_is_killed_as_it_starts_is_started_again(tmp_path, deaths, starts):
    def make():
        if len(list(tmp_path.iterdir())) < deaths:
            (tmp_path / f"{os.getpid()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return lambda job: job

    if starts:
        engine = Processes([make], lambda job: job)
        engine.submit(Job("predict", "clean", "l2", "unit", (0,)))
        assert engine.result().place.pid not in (os.getpid(), int(next(tmp_path.iterdir()).name))
        engine.stop()
    else:
        with pytest.raises(WorkerKilled, match="ended as it started, killed"):
            Processes([make], lambda job: job)
    assert len(list(tmp_path.iterdir())) == deaths


def test_a_worker_that_ends_by_itself_as_it_starts_is_not_started_again(tmp_path):
    def make():
        (tmp_path / f"{os.getpid()}").touch()
        os._exit(3)

    with pytest.raises(WorkerKilled, match=r"by itself \(exit code 3\)"):
        Processes([make], lambda job: job)
    assert len(list(tmp_path.iterdir())) == 1


class Mortal(nn.Module):
    """A model that ends its worker where it is asked for gradients of a batch that `doomed` is true of; so many times."""

    def __init__(self, model, folder, doomed, times):
        super().__init__()
        self.model, self.home, self.folder, self.doomed, self.times = model, os.getpid(), folder, doomed, times

    def forward(self, x):
        assert (x == x).all()  # refused by certificates in every process alike
        deaths = len(list(self.folder.iterdir()))
        if os.getpid() != self.home and torch.is_grad_enabled() and deaths < self.times and self.doomed(x):
            (self.folder / f"{os.getpid()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.model(x)


def test_a_killed_worker_is_replaced_and_its_job_computed_again(tmp_path):
    model, x, y = scene()
    (tmp_path / "deaths").mkdir()
    given = queried(block=5, attacks=(DDN(steps=8),))
    one = evaluate(Mortal(model, tmp_path / "deaths", lambda batch: False, 0), (x, y), **given)
    mortal = Mortal(model, tmp_path / "deaths", lambda batch: True, 1)
    done = evaluate(mortal, (x, y), **given, workers=2, folder=tmp_path)
    assert 1 <= len(list((tmp_path / "deaths").iterdir())) <= 2  # both workers may meet the first batch
    assert done.about.complete and verdicts.digest(done.table) == verdicts.digest(one.table)


def test_a_job_that_kills_two_workers_is_given_up_in_a_line_and_the_rest_is_kept(tmp_path):
    model, x, y = scene()
    (tmp_path / "deaths").mkdir()
    given, said = queried(block=5, attacks=(DDN(steps=8),)), []
    one = evaluate(Mortal(model, tmp_path / "deaths", lambda batch: False, 0), (x, y), **given)
    doomed = x[one.table.loc[one.table["method"] == "ddn", "index"].iloc[0]].flatten()

    def near(batch):
        return bool(((batch.flatten(1) - doomed).norm(dim=1) < 1e-3).any())

    mortal = Mortal(model, tmp_path / "deaths", near, 100)
    cut = evaluate(mortal, (x, y), **given, workers=2, folder=tmp_path, on_event=said.append)
    assert not cut.about.complete and cut.about.incomplete_because == "killed"
    lines = cut.about.failed  # the attack and, where the image is certified, its audit
    assert (
        "ddn on" in lines[0]
        and set(lines) <= {event.text for event in said if isinstance(event, Message)}
        and len(list((tmp_path / "deaths").iterdir())) == 2 * len(lines)
    )
    assert all("was given up: both workers that tried it ended" in line and "\n" not in line for line in lines)
    bad = cut.table[cut.table["state_reason"] == "error"]
    assert 1 <= len(bad[bad["method"] == "ddn"]) <= 5 and not cut.table.duplicated(["index", "method", "eps"]).any()
    assert "survived" not in set(verdicts.states(cut, 0.1)["state"].loc[bad["index"]])
    mortal.times = 0
    again = evaluate(mortal, (x, y), **given, workers=2, folder=tmp_path)
    assert again.about.complete and verdicts.digest(again.table) == verdicts.digest(one.table)


def answer(job):
    return os.getpid()


def test_a_worker_that_is_killed_while_it_has_nothing_to_do_is_replaced():
    engine = Processes([lambda: answer] * 2, answer)
    try:
        first = {worker.process.pid for worker in engine._pool._workers.values()}
        for worker in engine._pool._workers.values():
            worker.process.kill()
            worker.process.join()
        jobs = [Job("predict", "prediction", "l2", "unit", (index,)) for index in range(2)]
        for job in jobs:
            engine.submit(job)
        found = [engine.result() for _ in jobs]
        assert {one.job.index for one in found} == {(0,), (1,)} and first.isdisjoint({one.found for one in found})
    finally:
        engine.stop()


class Elsewhere(nn.Module):
    """A model that takes note of who asks it."""

    def __init__(self, model, folder):
        super().__init__()
        self.model, self.folder = model, folder

    def forward(self, x):
        (self.folder / str(os.getpid())).touch()
        return self.model(x)


def test_the_work_is_done_by_other_processes_which_are_gone_afterwards(tmp_path):
    model, x, y = scene()
    evaluate(Elsewhere(model, tmp_path), (x, y), **queried(workers=3, certificates=(), block=4))
    asking = {int(path.name) for path in tmp_path.iterdir()}
    assert len(asking - {os.getpid()}) == 3
    for process in asking - {os.getpid()}:
        with pytest.raises(ProcessLookupError):
            for _ in range(500):
                os.kill(process, 0)
                time.sleep(0.01)


class Fussy(EngineAttack):
    """Says what it does not like."""

    name: Literal["fussy"] = "fussy"

    def search(self, engine):
        raise UserError(f"not these {len(engine.x)} images")


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # of an attack past the union of names
def test_the_users_error_in_a_worker_is_the_users_error_here():
    model, x, y = scene()
    recipe = EvalRecipe(eps=(0.1,), certificates=(), diagnostics=False, workers=2, block=5)
    with pytest.raises(UserError, match="not these 5 images"):
        evaluate(model, (x, y), recipe.model_copy(update={"attacks": (Fussy(),)}))


def test_workers_on_another_device_are_refused():
    model, x, y = scene(2)
    runner = Runner(Subject(model, model, given_split(x, y, 3), "net", "", "mps", 0))
    with pytest.raises(UserError, match="on a CPU or on GPUs, found device 'mps'"), started(Here(), runner, None, 2, Store()):
        pass


def drive(path):
    """A process with two workers that are at work for long."""

    def sleep(job):
        time.sleep(600)

    engine = Processes([lambda: sleep] * 2, sleep)
    for index in range(2):
        engine.submit(Job("predict", "prediction", "l2", "unit", (index,)))
    path.write_text(" ".join(str(worker.process.pid) for worker in engine._pool._workers.values()))
    time.sleep(600)


def alive(process):
    try:
        return (Path("/proc") / process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent_however_it_ends(how, tmp_path):
    path = tmp_path / "processes"
    driver = multiprocessing.get_context("fork").Process(target=drive, args=(path,))
    driver.start()
    while not (path.exists() and len(path.read_text().split()) == 2):
        assert driver.is_alive()
        time.sleep(0.02)
    workers = path.read_text().split()
    assert all(map(alive, workers))
    os.kill(driver.pid, how)
    driver.join()
    for _ in range(1000):
        if not any(map(alive, workers)):
            return
        time.sleep(0.01)
    pytest.fail("workers outlived their parent")


def test_workers_that_are_spawned_compute_the_same():
    """As for devices, to which a forked process has no access: what is evaluated is sent along."""
    model, x, y = scene(5)
    runner = Runner(Subject(model, model, given_split(x, y, 3), "net", weights_digest(model.state_dict()), "cpu", 0))
    engine = Processes([RunnerMaker.of(runner, None, "cpu")], runner, "spawn")
    try:
        job = Job("attack", "ddn", "l2", "unit", (0, 3), DDN(steps=4), predicted=(0, 0))
        engine.submit(job)
        one, other = engine.result().found.table, runner(job).table
    finally:
        engine.stop()
    assert one.drop(columns="seconds").equals(other.drop(columns="seconds"))


def test_a_runner_is_made_of_the_very_model_and_images_or_not_at_all():
    model, x, y = scene(5)
    split = given_split(x, y, 3)
    other = Held(scene(5)[0].double().float(), split.take(torch.tensor([1, 0, 4, 2])))
    twin = Transfer.by(model, "w", "a")
    runner = Runner(
        Subject(model, model, split.take(torch.tensor([4, 1])), "net", weights_digest(model.state_dict()), "cpu", 0), twin
    )
    made = RunnerMaker.of(runner, other, "cpu")()
    assert torch.equal(made.subject.split.x, x[[4, 1]]) and made.transfer.key == "w"
    torch.testing.assert_close(made.transfer.twin(x), model(x))
    with pytest.raises(UserError, match="has no image 4"):
        RunnerMaker.of(runner, Held(other.model, split.take(torch.tensor([0, 1]))), "cpu")()
    with torch.no_grad():
        other.model[1].weight += 1e-3
    with pytest.raises(UserError, match="it changed meanwhile"):
        RunnerMaker.of(runner, other, "cpu")()


def test_a_model_by_name_is_a_loader_as_json():
    loader = Typed("digits_mlp", smooth={"sigma": 0.25, "votes": 100})
    again = Typed.read(json.loads(json.dumps(loader.plain())))
    assert again == loader and isinstance(again, Loader) and again.load().model.sigma == 0.25
    one, named = Typed("digits_mlp").load(), load_model("digits_mlp")
    assert weights_digest(one.model.state_dict()) == weights_digest(named.model.state_dict())
    assert one.split.digest == named.test.digest
    with pytest.raises(UserError, match="loader: "):
        Typed.read({"modell": "digits_mlp"})


def test_a_worker_whose_parent_is_gone_ends_without_a_word(capfd):
    """A pipe that is closed with messages unread is reset, not only ended."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(lambda: print, theirs, os.getpid(), [ours]))
    process.start()
    theirs.close()
    assert ours.poll(60)  # it says that it has begun, which nobody reads
    ours.close()
    process.join(60)
    assert process.exitcode == 0 and capfd.readouterr().err == ""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="no /proc")
def test_the_keyboard_never_interrupts_a_worker():
    """SIGINT is ignored by a worker, and blocked until then, so that none arrives as it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    engine = Processes([lambda: print] * 2, print)
    try:
        for worker in engine._pool._workers.values():
            lines = dict(line.split(":", 1) for line in Path(f"/proc/{worker.process.pid}/status").read_text().splitlines())
            bit = 1 << (signal.SIGINT - 1)
            assert int(lines["SigIgn"], 16) & bit and not int(lines["SigBlk"], 16) & bit
    finally:
        engine.stop()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
