"""The clock that inner loops ask."""

import math
import pickle

import pytest

from robustbench_rkhs.runtime import clock as clocks
from robustbench_rkhs.runtime.clock import GRAIN, UNKNOWN, Clock, OutOfTime, afford, ask, left, limited, portions, unlimited


@pytest.fixture
def now(monkeypatch):
    """Seconds that pass only when the test says so."""
    time = [100.0]
    monkeypatch.setattr(clocks.time, "monotonic", lambda: time[0])
    return time


def test_a_clock_counts_from_when_it_was_made(now):
    clock = Clock(5)
    assert clock.left() == 5 and clock.passed() == 0
    now[0] += 4
    clock.ask()
    assert clock.left() == 1
    now[0] += 1
    with pytest.raises(OutOfTime):
        clock.ask()
    assert Clock(None).left() == math.inf


def test_the_nearest_end_counts_whichever_was_set_first(now):
    ask()
    assert left() == math.inf
    for outer, inner in [(9, 2), (2, 9)]:
        with limited(Clock(outer)), limited(None), limited(Clock(inner)):
            assert left() == 2
            ask()
            now[0] += 2
            with pytest.raises(OutOfTime):
                ask()
        ask()


def test_the_clock_is_gone_once_its_time_was_used_up(now):
    with pytest.raises(OutOfTime), limited(Clock(0)):
        ask()
    ask()


def test_no_except_exception_swallows_the_end():
    def library():
        try:
            ask()
        except Exception:
            return "swallowed"

    with pytest.raises(OutOfTime), limited(Clock(0)):
        library()


def test_portions_are_whole_without_a_clock_and_by_the_pace_where_one_runs(now):
    assert list(portions(600, 256)) == [slice(0, 256), slice(256, 512), slice(512, 600)]
    found = []
    with pytest.raises(OutOfTime), limited(Clock(5)):
        for some in portions(600, 256):
            found.append(some.stop - some.start)
            now[0] += 0.01 * found[-1]  # so many seconds each
    assert found == [int(GRAIN / UNKNOWN), 100, 100, 100, 100, 92]  # never more than is left
    with limited(Clock(100_000)):  # nothing is cut where it could not matter
        assert list(portions(600, 256)) == [slice(0, 256), slice(256, 512), slice(512, 600)]


def test_what_cannot_ask_is_not_begun_where_it_would_take_longer_than_is_left(monkeypatch):
    monkeypatch.setattr(clocks, "seconds_each", lambda threads: 1e-9)
    afford(1e15)
    with limited(Clock(10)):
        afford(5e9)
        with pytest.raises(OutOfTime):
            afford(5e10)
    with limited(Clock(0)), pytest.raises(OutOfTime):
        afford(1)


def test_the_short_end_of_something_asks_no_clock():
    with limited(Clock(0)):
        with unlimited():
            ask()
        with pytest.raises(OutOfTime):
            ask()


def test_a_pickled_clock_goes_on_with_what_is_left(now):
    clock = Clock(5)
    now[0] += 3
    sent = pickle.dumps(clock)
    now[0] += 50
    assert pickle.loads(sent).left() == 2
    assert pickle.loads(pickle.dumps(Clock())).left() == math.inf
