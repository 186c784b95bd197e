"""Events of long work: true at any moment, never far apart, told once, and without effect on what is found."""

import io
import itertools
import time
import warnings
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
from heard import messages_into
from oracles import affine, trained_digits
from rich.console import Console
from test_attacking import Reach
from test_train import tiny
from torch import nn

from robustbench_rkhs import verdicts
from robustbench_rkhs.attacks import APGD, DDN, FAB, PGD, Ensemble, Square, SuperDeepFool
from robustbench_rkhs.cli import display, ticker
from robustbench_rkhs.cli.display import shown
from robustbench_rkhs.cli.live import LiveDisplay
from robustbench_rkhs.cli.screen import console_of_width
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime import clock, events, heartbeat, lines, steps
from robustbench_rkhs.runtime.events import (
    Between,
    BoundsChanged,
    EpochFinished,
    Finished,
    Message,
    PhaseStarted,
    Progress,
    TrainingStep,
    emit,
    listening,
)
from robustbench_rkhs.runtime.heartbeat import metered, staged
from robustbench_rkhs.runtime.lines import Lines, followed
from robustbench_rkhs.runtime.steps import Step
from robustbench_rkhs.submission import confined
from robustbench_rkhs.training import progress
from robustbench_rkhs.training.loop import train
from robustbench_rkhs.training.progress import Pace
from robustbench_rkhs.zoo import evaluate as evaluate_verb

EPS = (0.1, 0.4, 0.8)
SETTINGS = {"eps": EPS, "attacks": (SuperDeepFool(steps=3), PGD(steps=5)), "certificates": ("margin", "liplt"), "block": 10}
AFTER = {"predictions": 0, "first look": 1, "certificates": 2, "second look": 3, "independence": 4, "attacks": 5, "diagnosis": 6}


class Time:
    """A clock that is turned by hand."""

    def __init__(self, *modules):
        self.now, self.modules = 100.0, modules

    def set(self, monkeypatch):
        for module in self.modules:
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        return self


@pytest.fixture(scope="module")
def digits():
    trained = trained_digits(images=40)
    return trained.model, (trained.x, trained.y)


@pytest.mark.parametrize("workers", [None, 2])
def test_what_an_evaluation_tells_is_true_at_any_moment_and_ends_at_its_table(digits, workers):
    heard = []
    done = evaluate(*digits, **SETTINGS, workers=workers, on_event=heard.append)
    table = verdicts.summary(done).sort_values("eps")
    told = [event.bounds for event in heard if isinstance(event, BoundsChanged)]
    assert [one.low for one in told[-1]] == pytest.approx(table["certified"].tolist())
    assert [one.high for one in told[-1]] == pytest.approx(table["not_broken"].tolist())
    assert [one.eps for one in told[-1]] == sorted(EPS) and len(told) > 5 and told[0] != told[-1]
    for before, after in itertools.pairwise(told):
        assert before != after
        for one, next_ in zip(before, after, strict=True):
            assert one.low <= next_.low <= next_.high <= one.high
    phases = [AFTER[event.phase] for event in heard if isinstance(event, PhaseStarted) and event.phase in AFTER]
    assert phases == sorted(set(phases)) and {0, 2, 4, 5, 6} <= set(phases)
    assert isinstance(heard[-1], Finished) and heard[-1].complete and sum(isinstance(one, Finished) for one in heard) == 1
    told = [event for event in heard if isinstance(event, Progress)]
    for _, step in itertools.groupby(told, key=lambda event: (event.phase, event.method, event.total)):
        step = list(step)
        counts = [event.done for event in step]
        assert counts == sorted(counts) and step[0].total > 0
        if step[0].phase != "diagnosis":
            assert counts[-1] == step[-1].total and step[-1].left is None
    assert {event.method for event in told} >= {"margin", "liplt", "superdeepfool", "pgd"}
    rows = done.table[done.table["method"] == "superdeepfool"]
    assert max(event.total for event in told if event.method == "superdeepfool") == len(rows)


def test_listening_changes_no_table_and_no_digest(digits):
    plain, heard = evaluate(*digits, **SETTINGS), []
    loud = evaluate(*digits, **SETTINGS, on_event=heard.append)
    assert heard and verdicts.digest(plain.table) == verdicts.digest(loud.table) and plain.about.job == loud.about.job


def test_a_listener_that_fails_is_told_of_once_and_loses_nothing(digits):
    def on_event(event):
        raise ValueError("no\nmore")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        done = evaluate(*digits, **SETTINGS, on_event=on_event)
    own = [str(one.message) for one in caught if "on_event" in str(one.message)]
    assert own == ["on_event failed, the work goes on: ValueError: no"]
    assert verdicts.digest(done.table) == verdicts.digest(evaluate(*digits, **SETTINGS).table)


def test_the_keyboard_inside_a_listener_interrupts_as_elsewhere(digits):
    heard = []

    def on_event(event):
        heard.append(event)
        if isinstance(event, Progress) and event.phase == "attacks":
            raise KeyboardInterrupt

    done = evaluate(*digits, **SETTINGS, on_event=on_event)
    assert done.about.incomplete_because == "interrupted" and isinstance(heard[-1], Finished) and not heard[-1].complete
    known = [event.bounds for event in heard if isinstance(event, BoundsChanged)][-1]
    assert [one.low for one in known] == pytest.approx(verdicts.summary(done).sort_values("eps")["certified"].tolist())


class Talking(Reach):
    name: Literal["talking"] = "talking"

    def search(self, engine):
        emit(Message(text=f"{len(engine.x)} images"))


def test_events_inside_workers_reach_the_process_that_listens(digits):
    said = []
    settings = SETTINGS | {"attacks": (Talking(),), "diagnostics": False, "rechecked": 0}
    evaluate(*digits, **settings, workers=2, on_event=messages_into(said))
    assert [line for line in said if line.endswith("images")]


class Slow(nn.Module):
    """Every forward pass takes a third of a second of a clock turned by hand."""

    def __init__(self, model, hands):
        super().__init__()
        self.model, self.hands = model, [hands]

    def forward(self, x):
        self.hands[0].now += 0.3
        return self.model(x)


METHODS = {
    "apgd": APGD(steps=12),
    "fab": FAB(steps=6, targets=2),
    "square": Square(queries=30),
    "pgd": PGD(steps=12),
    "superdeepfool": SuperDeepFool(),
    "ddn": DDN(steps=12),
    "ensemble": Ensemble(version="custom", attacks=(APGD(steps=5), Square(queries=20))),
    "foolbox": "foolbox:attack=ddn",
}


@pytest.mark.parametrize("name", METHODS)
def test_no_work_on_a_block_is_silent_for_two_seconds(digits, name, monkeypatch):
    model, (x, y) = digits
    hands = Time(heartbeat, steps)
    slow, heard = Slow(model, hands), []
    hands.set(monkeypatch)
    settings = {"eps": (0.4,), "certificates": (), "block": 40, "diagnostics": name == "pgd"}
    attacks = (METHODS[name],) if not isinstance(METHODS[name], str) else METHODS[name]
    evaluate_verb(slow, (x, y), attacks=attacks, **settings, on_event=lambda event: heard.append((hands.now, event)))
    gaps = [after - before for (before, _), (after, _) in itertools.pairwise(heard)]
    assert hands.now > 103 and max(gaps) <= 2.0
    inside = [event for _, event in heard if isinstance(event, Progress) and event.phase == "attacks" and event.under_way]
    assert all(0 < event.under_way <= event.total for event in inside)
    assert inside or name in ("foolbox", "square")  # a chunk of Square's queries is one stage


def test_a_budget_is_never_exceeded_by_the_time_to_go(digits):
    heard = []
    evaluate(*digits, **SETTINGS, budget=3600.0, on_event=heard.append)
    assert all(event.left is None or 0 <= event.left <= 3600 for event in heard if isinstance(event, Progress))


def test_the_time_to_go_is_that_of_the_measured_speed_and_nothing_where_there_is_none(monkeypatch):
    hands = Time(steps).set(monkeypatch)
    step = Step("attacks", "pgd", 100)
    assert step.left() is None and step.left(50.0) is None  # too early
    hands.now += 10
    step.add(20, computed=False)  # read, not computed: no speed
    assert step.left() is None and step.left(4.0) is None
    assert step.left(20.0) == pytest.approx(60 * 10 / 20)
    step.add(20)
    hands.now += 10
    step.add(20)  # 10 s for 20 images
    assert step.left() == pytest.approx(40 * 20 / 40)
    hands.now += 40
    step.add(20)  # these took 2 s each: the latest are the slowest
    assert step.left() == pytest.approx(20 * 2)
    step.add(20)
    assert step.left() is None  # nothing is left


def test_stages_divide_the_share_of_the_one_around_them():
    seen = []
    with metered() as meter:
        for part in staged(["a", "b"], weights=[1, 3], detail=str.upper):
            for _ in staged(range(4)):
                seen.append((part, meter.share, meter.detail))
                if part == "b":
                    break  # an early end is an end
    assert seen == [("a", 0.0, "A"), ("a", 0.0625, "A"), ("a", 0.125, "A"), ("a", 0.1875, "A"), ("b", 0.25, "B")]
    assert meter.share == 1.0 and meter.detail == ""
    with metered() as meter:
        seen = [meter.share for _ in staged(range(2), share=0.25)] + [meter.share for _ in staged(range(3))]
        seen += [meter.share for _ in staged(range(2))]  # nothing is left for these
    assert seen == pytest.approx([0.0, 0.125, 0.25, 0.5, 0.75, 1.0, 1.0]) and meter.share == 1.0
    assert list(staged([1, 2])) == [1, 2]  # where nobody measures


def test_an_adaptive_ensemble_tells_of_each_part_and_never_goes_back():
    oracle, seen = affine(4, (1, 8, 8), images=60), []
    with metered() as meter:
        oracle.model.register_forward_hook(lambda *_: seen.append((meter.share, meter.detail)))
        attack = Ensemble(eps=0.5 * oracle.l2.min().item(), effort="adaptive", precision="float32")
        attack(oracle.model, oracle.x, oracle.y, torch.arange(60))
        assert meter.share == pytest.approx(1.0)
    shares = [share for share, _ in seen]
    assert shares == sorted(shares) and max(b - a for a, b in itertools.pairwise(shares)) < 0.1
    assert [detail for detail, _ in itertools.groupby(detail for _, detail in seen) if detail] == [
        "apgd:cross_entropy", "apgd:targeted", "fab:targeted", "square"]  # fmt: skip


def test_work_inside_a_running_block_is_told_in_words():
    step = Step("attacks", "ensemble", 40)
    told = {0.0: "", 0.2: "", 10.0: " (25% of the work)", 39.9: " (99% of the work)"}
    for under_way, words in told.items():
        events = []
        with listening(events.append):
            step.tell(under_way)
        assert str(events[0]) == f"attacks: ensemble: 0 of 40 images{words}"


def test_a_training_tells_from_its_first_step(tmp_path):
    heard = []
    train(tiny(), tmp_path / "m", on_event=heard.append)
    told = [event for event in heard if isinstance(event, TrainingStep)]
    assert [(one.epoch, one.step) for one in told] == [(epoch, step) for epoch in range(3) for step in range(1, 5)]
    assert all((one.epochs, one.steps) == (3, 4) and one.images_per_second > 0 for one in told)
    epochs = [event for event in heard if isinstance(event, EpochFinished)]
    assert [one.epoch for one in epochs] == [0, 1, 2] and all(one.metrics["loss"] > 0 for one in epochs)
    assert isinstance(heard[-1], Finished) and "loss" in str(told[0]) and "images/s" in str(told[0])


def test_the_pace_of_a_training_is_that_of_its_steps_and_validations(monkeypatch):
    hands = Time(progress).set(monkeypatch)
    pace = Pace()
    assert pace.per_second() is None and pace.left(10, 1) is None
    pace.begin()
    hands.now += 5
    pace.mark(1)  # the first step counts until there is a second
    assert pace.per_second() == pytest.approx(0.2) and pace.left(10, 0) == pytest.approx(50)
    for _ in range(10):
        hands.now += 0.5
        pace.mark(2)
    assert pace.per_second() == pytest.approx(4) and pace.left(8, 3) == pytest.approx(2)
    with pace.validation():
        hands.now += 7
    pace.begin()  # the validation is no step
    hands.now += 0.5
    pace.mark(2)
    assert pace.per_second() == pytest.approx(4) and pace.left(8, 3) == pytest.approx(2 + 21)


def bounds(*known):
    return BoundsChanged(images=100, bounds=tuple(Between(eps=eps, low=low, high=high) for eps, low, high in known))


WORK = Progress(phase="attacks", method="ensemble", detail="fab", done=128, total=1000, under_way=5.0, seconds=30, left=125)


def test_short_work_writes_no_line_and_long_work_one_every_few_seconds():
    written, hands = [], Time()
    told = Lines(written.append, now=lambda: hands.now)
    told(Message(text="a note\x1b[2J"))
    told(WORK)
    hands.now += 1.9
    told.tick()
    assert written == []
    told(bounds((0.5, 0.412, 0.67)))
    times = []
    for _ in range(2000):
        hands.now += 0.5
        before = len(written)
        told.tick()
        times += [hands.now - 100] * (len(written) > before)
    assert written[0] == "a note" and times[0] <= 2.5
    words = "attacks: ensemble, fab: 128 of 1000 images (13% of the work), about 2 min to go; robust between 41.2% and 67.0% so far"
    assert written[1] == f"[0:02] {words}" and written[-1].startswith("[16:") and all(words in line for line in written[1:])
    gaps = [(before, after - before) for before, after in itertools.pairwise(times)]
    assert max(gap for at, gap in gaps if at < 60) <= 5.5 and max(gap for at, gap in gaps if at < 600) <= 10.5
    assert max(gap for _, gap in gaps) <= 30.5 and len(written) < 100
    told(Message(text="later"))
    assert written[-1] == "later"


def test_a_short_phase_is_not_shown_in_place_of_the_one_before():
    written, hands = [], Time()
    told = Lines(written.append, now=lambda: hands.now)
    told(WORK)
    hands.now += 3
    told(PhaseStarted(phase="validating"))
    assert "ensemble" in written[-1]
    hands.now += 0.5
    told(WORK)
    hands.now += 10
    told.tick()
    assert "ensemble" in written[-1]
    told(PhaseStarted(phase="drawing"))
    hands.now += 10
    told.tick()
    assert written[-1].endswith("drawing")


def test_bounds_are_told_where_most_is_open():
    assert str(bounds((0.5, 0.1, 0.3))) == "robust between 10.0% and 30.0% so far"
    several = bounds((0.1, 0.9, 0.9), (0.2, 0.5, 0.9), (0.3, 0.4, 0.8), (0.4, 0.1, 0.2))
    assert str(several) == "robust between 50.0% and 90.0% at 0.2, 40.0% and 80.0% at 0.3, 10.0% and 20.0% at 0.4 so far"
    assert str(bounds((0.5, 0.875, 0.875))) == "robust 87.5%"
    mixed = bounds((0.1, 0.9, 0.9), (0.2, 0.5, 0.9))
    assert str(mixed) == "robust 90.0% at 0.1, between 50.0% and 90.0% at 0.2 so far"


def test_the_live_display_fits_its_terminal_and_vanishes():
    hands = Time()
    screen = Console(file=io.StringIO(), force_terminal=True, width=70, height=10, _environ={})
    shown_live = LiveDisplay(screen, now=lambda: hands.now)
    shown_live(PhaseStarted(phase="loading a_model_with_a_name_that_is_far_longer_than_any_terminal_is_wide_today"))
    shown_live.tick()
    assert screen.file.getvalue() == ""  # short work shows nothing
    for event in (None, WORK, bounds((0.5, 0.412, 0.67))):
        hands.now += 1
        if event:
            shown_live(event)
        shown_live.tick()
        shown_live.tick()  # nothing new: nothing is drawn
    rows = rendered(shown_live)
    assert rows[0].strip() == "attacks: ensemble, fab"
    assert "128 of 1000 images, 0:03 so far" in rows[1] and rows[2].strip() == "robust between 41.2% and 67.0% so far"
    assert max(map(len, rows)) <= 70
    drawn = screen.file.getvalue()
    assert drawn.count("attacks: ensemble") == 2 and "\x1b[?25l" in drawn
    step = TrainingStep(epoch=1, epochs=3, step=2, steps=4, loss=1.5, images_per_second=1234.0, left=65.0)
    shown_live(step)
    rows = rendered(shown_live)
    assert rows[0].strip() == "epoch 2 of 3, step 2 of 4: loss 1.5000" and "1,234 images/s, 0:03 so far, about 65 s" in rows[1]
    shown_live.stop()
    assert screen.file.getvalue().endswith(("\x1b[2K", "\x1b[?25h")) and not shown_live.live.is_started


def rendered(shown_live):
    page = Console(file=io.StringIO(), width=70)
    page.print(shown_live.render(), crop=True)
    return page.file.getvalue().splitlines()


@pytest.mark.parametrize("quiet", [False, True])
def test_in_a_pipe_a_command_writes_lines_to_stderr_unless_quiet(quiet, monkeypatch, capsys):
    monkeypatch.setattr(lines, "PATIENCE", 0.0)
    monkeypatch.setattr(ticker, "EVERY", 1000.0)
    with shown(console_of_width(120, stderr=False), quiet, epochs=True):
        emit(WORK)
        emit(Message(text="a note"))
        metrics = {"loss": 1.0, "lr": 0.1, "seconds": 1.0, "validation_clean": 0.5, "validation_robust": 0.25}
        emit(EpochFinished(epoch=0, epochs=2, metrics=metrics))
    out, err = capsys.readouterr()
    assert ("attacks: ensemble" in err) != quiet and "a note" in out and "attacks" not in out
    assert ("epoch 1 of 2: loss 1.0000, lr 0.1, validation clean 0.500, robust 0.250" in out) != quiet


def test_a_display_that_cannot_be_drawn_ends_no_work(monkeypatch, capsys):
    monkeypatch.setattr(ticker, "EVERY", 0.001)
    calls = []

    def broken():
        calls.append(1)
        raise BrokenPipeError

    with ticker.ticking(broken):
        end = time.monotonic() + 20
        while not calls and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(0.02)
    assert len(calls) == 1


def test_in_python_lines_are_for_whom_nobody_listens(monkeypatch, capsys):
    monkeypatch.setattr(lines, "PATIENCE", 0.0)
    heard = []
    with followed(None):
        emit(WORK)
    assert "128 of 1000 images" in capsys.readouterr().err
    with followed(heard.append), followed(None):  # a verb inside another
        emit(WORK)
    with listening(None):
        emit(WORK)
    assert heard == [WORK] and capsys.readouterr() == ("", "")


def test_an_event_of_a_process_that_is_not_trusted_is_checked():
    sent = [WORK, bounds((0.5, 0.0, 1.0)), Message(text="m"), Finished(seconds=2.0)]
    assert [confined._event(event.model_dump(mode="json")) for event in sent] == sent
    with pytest.raises(UserError, match="invalid event"):
        confined._event({"kind": "message", "text": "m", "more": 1})


def test_every_kind_of_event_is_read_back():
    kinds = {one.model_fields["kind"].default for one in events.Event.__subclasses__()}
    assert (
        len(kinds) == len(events.Event.__subclasses__()) and set(confined.EVENT.json_schema()["discriminator"]["mapping"]) == kinds
    )


def test_asking_a_clock_costs_next_to_nothing_where_nobody_listens():
    calls = []
    with heartbeat.heartbeat(lambda: calls.append(1)):
        for _ in range(1000):
            clock.ask()
    assert calls == [] and display.SHOWN == 20
