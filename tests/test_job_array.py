"""Job arrays: what is said while their tasks run, which of them prints, and what becomes of the lost and the interrupted."""

import sys
from pathlib import Path

import pytest

from robustbench_rkhs import zoo
from robustbench_rkhs.cli import evaluate
from robustbench_rkhs.cli.engines import chosen_engine, submitted
from robustbench_rkhs.evaluation.engine_choice import Submitit
from robustbench_rkhs.evaluation.engines.submitit import JobArray, Task
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.children import WorkerKilled
from robustbench_rkhs.runtime.events import Progress, listening


class Queued:
    """A task of a job array, which ends after some looks with what it returns or raises."""

    state = "RUNNING"

    def __init__(self, number, end, looks=0):
        self.job_id, self._end, self._looks, self.cancelled = f"7_{number}", end, looks, False

    def done(self):
        if self._looks == 0:
            return True
        if self._end is KeyboardInterrupt:
            raise KeyboardInterrupt
        self._looks -= 1
        return False

    def result(self):
        if isinstance(self._end, Exception):
            raise self._end
        return self._end

    def cancel(self):
        self.cancelled = True


@pytest.fixture
def array(monkeypatch):
    """A job array of tasks with these ends, the first after two looks, and what is said meanwhile."""
    monkeypatch.setattr("robustbench_rkhs.evaluation.engines.submitit.NAP", 0)
    said = []

    def made(*ends):
        found = object.__new__(JobArray)
        found._jobs = [Queued(number, end, 0 if number else 2) for number, end in enumerate(ends)]
        return found, said

    with listening(said.append):
        yield made


def test_a_job_array_says_how_many_of_its_tasks_have_ended(array):
    waited, said = array((0, "table", ""), (0, "", ""))
    assert waited.result() == (0, "table", "")
    assert [(one.done, one.total, one.unit, one.detail) for one in said if isinstance(one, Progress)] == [
        (0, 2, "tasks", "2 running"),
        (1, 2, "tasks", "1 running"),
        (1, 2, "tasks", "1 running"),
    ]


def test_a_job_array_tells_of_lost_tasks_and_ends_without_its_first(array):
    lost = RuntimeError("Job has failed\nslurmstepd: out of memory")
    waited, said = array((0, "table", ""), lost, (2, "", "loading\nerror: no GPU\n"))
    assert waited.result() == (0, "table", "")
    told = [str(one) for one in said if not isinstance(one, Progress)]
    assert told == ["task 7_1 was lost: slurmstepd: out of memory", "task 7_2 ended with exit code 2: error: no GPU"]
    waited, _ = array(lost, (0, "", ""))  # the second has the whole table, and prints nothing
    with pytest.raises(WorkerKilled, match=r"^task 7_0, which prints, was lost: slurmstepd: out of memory; the same command"):
        waited.result()


def test_an_interrupted_job_array_is_cancelled(array):
    waited, said = array(KeyboardInterrupt, (0, "", ""))
    with pytest.raises(KeyboardInterrupt):
        waited.result()
    assert all(job.cancelled for job in waited._jobs) and str(said[-1]) == "cancelled 7_0 7_1"


def test_a_killed_process_is_a_lost_task(array):
    killed = Task([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], Path.cwd(), 0, 2)()
    waited, said = array((0, "table", ""), killed)
    assert waited.result().output == "table" and str(said[-1]) == "task 7_1 was lost: killed (out of memory perhaps)"
    waited, _ = array(killed, killed)
    with pytest.raises(WorkerKilled, match=r"^task 7_0, which prints, was lost: killed"):
        waited.result()


def test_the_signal_that_queues_a_task_again_reaches_it_alone(tmp_path):
    """Slurm sends it to every process of the task: one that died of it would end the task before it is queued."""
    code = "import os, signal; os.kill(os.getpid(), signal.SIGUSR2); print(os.environ['RKHS_RANK'], os.environ['RKHS_RANKS'])"
    assert Task([sys.executable, "-c", code], tmp_path, 1, 3)() == (0, "1 3\n", "")


@pytest.mark.parametrize("engine", ["torchrun", "srun", "ray", "submitit"])
def test_several_devices_are_refused_before_anything_is_submitted(engine):
    with pytest.raises(
        UserError, match=r"^--device cuda:0,cuda:1: several devices are of the engine here, found engine"
    ) as refused:
        if engine == "submitit":
            submitted(Submitit(), "cuda:0,cuda:1", quiet=False)
        chosen_engine(engine, "cuda:0,cuda:1")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--engine", "ray", "--workers", "2"], "--workers are processes of the engine here, found engine ray"),
        (["--engine", "submitit:cluster=local", "--workers", "2"], "found engine submitit: leave out --workers"),
        (["--engine", "submitit:cluster=local", "--parts", "foo://x"], "foo://x: expected a URL of s3"),
        (["--parts", "reports"], "reports: expected a URL of s3"),
    ],
)
def test_what_an_engine_refuses_is_told_before_anything_is_loaded_or_submitted(words, line, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "submitted", lambda *_: pytest.fail("it was submitted"))
    monkeypatch.setattr(zoo, "load_model", lambda *_: pytest.fail("the model was loaded"))
    monkeypatch.setattr(sys, "argv", ["rkhs-eval", "--model", "digits_mlp", "--eps", "0.1", *words])
    with pytest.raises(SystemExit) as ended:
        evaluate.main()
    assert ended.value.code == 2 and line in capsys.readouterr().err
