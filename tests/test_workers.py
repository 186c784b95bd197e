"""Workers: the same table at any number of them, nothing done twice, and clear words where they cannot be had."""

import os
import signal
import time
from typing import Literal

import pytest
import torch
from torch import nn

from robustbench_rkhs import verdicts
from robustbench_rkhs.attacks import DDN, Ensemble, FoolboxAttack, Square
from robustbench_rkhs.attacks.engine_attack import EngineAttack
from robustbench_rkhs.evaluation.recipe import EvalRecipe
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.evaluation.workers import started
from robustbench_rkhs.nodes.node import UserError

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


def test_a_killed_worker_is_one_clear_line(tmp_path):
    model, x, y = scene()
    with pytest.raises(UserError, match="a worker was killed"):
        evaluate(Killer(model), (x, y), **queried(workers=2, certificates=()), folder=tmp_path)
    done = evaluate(model, (x, y), **queried(workers=2, certificates=()), folder=tmp_path)
    assert done.about.complete


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
    evaluate(Elsewhere(model, tmp_path), (x, y), **queried(workers=3, certificates=()))
    asking = {int(path.name) for path in tmp_path.iterdir()}
    assert len(asking) == 4 and os.getpid() in asking
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
    with (
        pytest.raises(UserError, match="workers share the model in the memory of a CPU, found device 'cuda'"),
        started(2, "cuda", print),
    ):
        pass
