"""The record of a model's answers: a larger sample keeps what a smaller one found, one changed answer keeps nothing."""

import multiprocessing

import numpy as np
import pytest
import torch
from test_attacking import Counter, Nearest, Reach, recipe
from torch import nn

from robustbench_rkhs.evaluation.known_answers import answers_digest
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.runtime.digests import weights_digest
from robustbench_rkhs.verdicts import digest

OF = {"weights": "w", "seed": 0}


def logits_of(images, classes=10, seed=0):
    return torch.randn(images, classes, generator=torch.Generator().manual_seed(seed)) + 3 * (classes > 10)


@pytest.mark.parametrize("classes", [1, 2, 10, 16, 17, 1000])
def test_more_images_keep_the_name_and_one_changed_answer_begins_anew(tmp_path, classes):
    logits, index = logits_of(60, classes), np.arange(60) * 7
    first = answers_digest(tmp_path, OF, index[:20], logits[:20])
    assert first == weights_digest({"logits": logits[:20]})
    rounding = 1 + (1e-7 if classes > 1 else 0) * torch.randn(60, classes, generator=torch.Generator().manual_seed(1))
    assert answers_digest(tmp_path, OF, index[40:], logits[40:] * rounding[40:]) == first  # none of the same images
    assert answers_digest(tmp_path, OF, index, logits * rounding) == first
    assert answers_digest(tmp_path, OF, index[10:50], logits[10:50]) == first
    assert answers_digest(tmp_path, OF | {"seed": 1}, index[:5], logits[:5]) == weights_digest({"logits": logits[:5]})
    changed = logits.clone()
    changed[33, -1] += 1e-3 * (logits[33].amax() - logits[33].amin()) + (classes == 1)
    for one in (changed, logits):  # and back again
        assert answers_digest(tmp_path, OF, index[30:], one[30:]) == weights_digest({"logits": one[30:]})


def test_an_offset_of_all_logits_hides_no_change(tmp_path):
    logits, index = logits_of(20) + 1000, np.arange(20)
    first = answers_digest(tmp_path, OF, index, logits)
    logits[7, 2] += 0.01
    assert answers_digest(tmp_path, OF, index, logits) != first


def test_a_damaged_record_is_none_and_without_a_folder_the_name_is_exact(tmp_path):
    logits, index = logits_of(20), np.arange(20)
    first = answers_digest(tmp_path, OF, index[:9], logits[:9])
    (record,) = tmp_path.glob("answers-*.npz")
    record.write_bytes(record.read_bytes()[:-60] + b"x" * 60)
    assert answers_digest(tmp_path, OF, index, logits) == answers_digest(None, OF, index, logits) != first


def _record(folder, index):
    answers_digest(folder, OF, index, logits_of(60)[index])


def test_evaluations_at_the_same_time_lose_none_of_each_others_answers(tmp_path):
    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")
    everybody = [context.Process(target=_record, args=(tmp_path, np.arange(at, 60, 12))) for at in range(12)]
    for one in everybody:
        one.start()
    for one in everybody:
        one.join(60)
    (record,) = tmp_path.glob("answers-*.npz")
    with np.load(record) as stored:
        assert sorted(stored["index"]) == list(range(60))


class Branching(nn.Module):
    """A network whose forward can't be traced, so that its key says nothing of its code; `shift` is code that changed."""

    def __init__(self, shift=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.shift = nn.Linear(12, 4), [shift]

    def forward(self, x):
        z = self.layer(x.flatten(1)) + 1000
        if float(z.sum()) > 0:
            z = torch.cat([z[:, :1] + self.shift[0], z[:, 1:]], 1)
        return z


def test_rows_of_code_that_changed_are_not_taken(tmp_path, monkeypatch):
    x = torch.rand(12, 1, 3, 4)
    y = Branching()(x).argmax(1)
    settings = recipe(Nearest(), Reach(), eps=(0.05, 0.1))
    evaluate(Branching(), (x, y), settings, name="net", folder=tmp_path)
    for shift in (0.02, 1.0):
        again = evaluate(Branching(shift), (x, y), settings, name="net", folder=tmp_path)
        assert digest(again.table) == digest(evaluate(Branching(shift), (x, y), settings, name="net").table)
    with monkeypatch.context() as patch:
        counter = Counter(patch)
        evaluate(Branching(1.0), (x, y), settings, name="net", folder=tmp_path)
        assert counter.calls == 0
