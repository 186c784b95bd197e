"""The table: states by their definition, statistics by closed forms, files that are whole or refused."""

import hashlib
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from robustbench_rkhs import verdicts
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.verdicts import COLUMNS, KEY, About, Evaluation
from robustbench_rkhs.verdicts.image_radii import implied

NAN, INF = float("nan"), float("inf")
ABOUT = {
    "model": "m",
    "weights": "w" * 64,
    "data": "digits",
    "norm": "l2",
    "box": "unit",
    "epsilons": [0.5, 1.0],
    "protocol": ["pgd"],
}


def row(index, method="prediction", radius=0.0, kind=None, eps=NAN, wrong=False, **given):
    """A row with neutral values; an attack's distances follow from its radius (linf: a quarter of l2)."""
    kind = kind or ("certificate" if method in ("prediction", "margin") else "attack")
    norm, found = given.get("norm", "l2"), kind == "attack" and np.isfinite(radius)
    l2 = (radius if norm == "l2" else 4 * radius) if found else NAN
    neutral = {"model": "m", "weights": "w" * 64, "data": "digits", "split": "test", "norm": norm, "box": "unit", "kind": kind}
    neutral |= {"method": method, "settings": "", "eps": eps, "index": index, "input_sha256": f"{index:064x}", "label": 1}
    neutral |= {"predicted": 2 if wrong else 1, "state_reason": "", "radius": radius, "distance_l2": l2, "distance_linf": l2 / 4}
    return neutral | {"forwards": 3, "backwards": 2, "seconds": 0.1, "arithmetic": "", "failure_probability": 0.0} | given


def evaluation(*rows, **about):
    images = {r["index"]: r["predicted"] != r["label"] for r in rows}
    predicted = [row(index, wrong=wrong) for index, wrong in images.items()]
    return Evaluation(verdicts.merge([pd.DataFrame([*rows, *predicted])]), About(**ABOUT | about))


def state(*rows, eps=0.5, norm=None, **about):
    found = verdicts.states(evaluation(*rows, **about), eps, norm).iloc[0]
    return found["state"] + (" (inferred)" if found["inferred"] else "")


OTHER = {"protocol": ["pgd", "ddn"]}
SHRINKING = [row(0, "pgd", INF, eps=1.0), row(0, "pgd", 0.7, eps=0.8), row(0, "pgd", INF, eps=0.5)]
STATES = {
    "nothing ran": ([row(0)], {}, "untested"),
    "wrong whatever an attack or certificate says": ([row(0, "pgd", 0.1, eps=0.5, wrong=True)], {}, "wrong"),
    "broken within": ([row(0, "pgd", 0.4, eps=0.5)], {}, "broken"),
    "broken at exactly eps": ([row(0, "pgd", 36 / 255, eps=36 / 255)], {"eps": 36 / 255}, "broken"),
    "broken by an audit": ([row(0, "audit:deepfool", 0.4)], {}, "broken"),
    "broken by a check": ([row(0, "pgd", INF, eps=0.5), row(0, "check:pgd", 0.4, eps=0.5)], {}, "broken"),
    "a linf attack's image counts in l2": ([row(0, "x", 0.1, eps=0.1, norm="linf")], {}, "broken"),
    "an l2 attack's image counts in linf": ([row(0, "x", 0.4)], {"eps": 0.1, "norm": "linf"}, "broken"),
    "one outside the box does not count": ([row(0, "x", 0.4, box="none")], {}, "untested"),
    "outside counts without a box": ([row(0, "x", 0.4, box="none")], {"box": "none"}, "broken"),
    "inside counts without a box": ([row(0, "x", 0.4)], {"box": "none"}, "broken"),
    "certified": ([row(0, "margin", 0.6)], {}, "certified"),
    "certified at exactly eps": ([row(0, "margin", 0.5)], {}, "certified"),
    "certified too little": ([row(0, "margin", 0.49)], {}, "untested"),
    "certified in another norm": ([row(0, "margin", 0.6, norm="linf")], {}, "untested"),
    "certified on the box only": ([row(0, "margin", 0.6)], {"box": "none"}, "untested"),
    "certified everywhere": ([row(0, "margin", 0.6, box="none")], {}, "certified"),
    "a refusal certifies nothing": ([row(0, "margin", 0.6, state_reason="refused")], {}, "untested"),
    "right is certified at zero": ([row(0)], {"eps": 0.0}, "certified"),
    "withstood its budget": ([row(0, "pgd", INF, eps=0.5)], {}, "survived"),
    "withstood a larger budget": ([row(0, "pgd", INF, eps=1.0)], {}, "survived (inferred)"),
    "a smaller budget": ([row(0, "pgd", INF, eps=0.4)], {}, "untested"),
    "a larger budget used up": ([row(0, "pgd", 0.7, eps=1.0)], {}, "untested"),
    "both budgets": ([row(0, "pgd", INF, eps=0.5), row(0, "pgd", 0.7, eps=1.0)], {}, "survived"),
    "minimal norm beyond": ([row(0, "pgd", 0.7)], {}, "survived (inferred)"),
    "minimal norm found nothing": ([row(0, "pgd", INF)], {}, "survived (inferred)"),
    "an error is no survival": ([row(0, "pgd", INF, eps=0.5, state_reason="error")], {}, "untested"),
    "a timeout is no survival": ([row(0, "pgd", INF, eps=0.5, state_reason="timeout")], {}, "untested"),
    "the protocol in another norm": ([row(0, "pgd", INF, eps=0.5, norm="linf")], {}, "untested"),
    "an audit is no protocol": ([row(0, "audit:deepfool", INF)], {}, "untested"),
    "half the protocol": ([row(0, "pgd", INF, eps=0.5)], OTHER, "untested"),
    "all of it, one without a budget": ([row(0, "pgd", INF, eps=0.5), row(0, "ddn", 0.8)], OTHER, "survived"),
    "all of it, the budget a larger one": ([row(0, "pgd", INF, eps=1.0), row(0, "ddn", 0.8)], OTHER, "survived (inferred)"),
    "all of it, one budget larger": ([row(0, "pgd", INF, eps=1.0), row(0, "ddn", INF, eps=0.5)], OTHER, "survived (inferred)"),
    "a larger budget taken back": (SHRINKING[:2], {}, "untested"),
    "taken back, and a smaller one": ([*SHRINKING[:2], row(0, "pgd", INF, eps=0.6)], {}, "survived (inferred)"),
    "taken back, and run again": (SHRINKING, {}, "survived"),
    "what another found takes nothing back": ([row(0, "pgd", INF, eps=1.0), row(0, "check:pgd", 0.7)], {}, "survived (inferred)"),
    "another image takes nothing back": ([row(0, "pgd", INF, eps=1.0), row(1, "pgd", 0.7, eps=0.8)], {}, "survived (inferred)"),
    "no protocol": ([row(0, "pgd", INF, eps=0.5)], {"protocol": []}, "untested"),
}


@pytest.mark.parametrize("case", STATES, ids=STATES.keys())
def test_the_state_of_an_image(case):
    rows, given, expected = STATES[case]
    assert state(*rows, **given) == expected


def test_a_breach_is_a_certificate_that_reaches_an_adversarial_image_of_a_correct_image():
    sound = [row(0, "margin", 0.39), row(0, "pgd", 0.4, eps=0.5), row(1, "pgd", 0.1, eps=0.5, wrong=True)]
    sound += [row(1, "margin", 0.3, wrong=True), row(2, "margin", 0.3), row(2, "pgd", INF, eps=0.5)]
    sound += [row(3, "margin", 0.3), row(3, "pgd", 0.2, eps=0.5, box="none")]  # outside the certificate's domain
    assert len(verdicts.breaches(evaluation(*sound))) == 0
    unsound = [row(4, "margin", 0.4), row(4, "audit:deepfool", 0.4), row(5, "margin", 0.2, norm="linf"), row(5, "pgd", 0.5)]
    unsound += [row(6, "margin", 0.3, box="none"), row(6, "pgd", 0.2, box="none")]
    found = verdicts.breaches(evaluation(*sound, *unsound))
    expected = [(4, "l2", "margin", 0.4, "audit:deepfool", 0.4), (5, "linf", "margin", 0.2, "pgd", 0.125)]
    assert list(found.itertuples(index=False, name=None)) == [*expected, (6, "l2", "margin", 0.3, "pgd", 0.2)]


def test_summary_counts_and_refuses_what_is_untested():
    rows = [row(0, wrong=True), row(1, "pgd", 0.4, eps=0.5), row(2, "margin", 0.6), row(3, "pgd", INF, eps=0.5)]
    rows += [row(2, "audit:deepfool", 1.5)]
    done = evaluation(*rows)
    half, one = verdicts.summary(done).to_dict("records")
    assert [half[f"count_{name}"] for name in verdicts.STATES] == [1, 1, 1, 1, 0]
    assert (half["clean"], half["robust"], half["certified"], half["open"]) == (0.75, 0.5, 0.25, 0.25)
    assert (half["robust_low"], half["robust_high"]) == verdicts.clopper_pearson(2, 4) and half["count_audited"] == 1
    assert (
        one["clean"] == 0.75 and one["count_untested"] == 2 and all(np.isnan(one[f"robust{end}"]) for end in ("", "_low", "_high"))
    )
    assert verdicts.accuracy_at(done, 0.5).share == 0.5
    with pytest.raises(UserError, match="2 images are untested"):
        verdicts.accuracy_at(done, 1.0)
    zero = verdicts.summary(done, [0.0]).iloc[0]
    assert zero["robust"] == zero["certified"] == zero["clean"] == 0.75


def test_an_attack_that_others_contradict_is_masked():
    fooled = [row(i, "pgd", INF, eps=0.5) for i in range(10)] + [row(i, "check:pgd", 0.4, eps=0.5) for i in range(10)]
    found = verdicts.by_attack(evaluation(*fooled, epsilons=[0.5])).iloc[0]
    assert (found["attacked"], found["alone"], found["overstated"], found["masked"]) == (10, 1.0, 1.0, True)
    honest = [row(i, "pgd", 0.4 if i else INF, eps=0.5) for i in range(20)] + [row(0, "check:pgd", 0.4, eps=0.5)]
    found = verdicts.by_attack(evaluation(*honest, row(20, "margin", 0.6), epsilons=[0.5])).iloc[0]
    assert (found["attacked"], found["broken"], found["alone"]) == (20, 19, 1 - 19 / 20)
    assert found["overstated"] == 0.05 and not found["masked"] and (found["forwards"], found["backwards"]) == (60, 40)


def test_other_evaluations_of_the_same_weights_count_as_breaks_never_as_survival():
    one = evaluation(row(0, "margin", 0.3), row(0, "pgd", INF, eps=0.5), row(1, "margin", 0.3))
    other = evaluation(row(0, "ddn", 0.1, norm="linf"), row(1, "pgd", INF, eps=0.5), row(7, "ddn", 0.1), norm="linf")
    both = verdicts.pooled(one, [one, other])
    assert list(verdicts.states(both, 0.5)["state"]) == ["broken", "untested"]
    assert (
        len(verdicts.breaches(both)) == 0
        and len(verdicts.breaches(verdicts.pooled(evaluation(row(0, "margin", 0.4)), [other]))) == 1
    )


images = st.tuples(
    st.booleans(),
    st.floats(0.01, 2),  # distance of the truly nearest adversarial image
    st.floats(0, 0.99),  # what a sound certificate proves of it
    st.sampled_from([0.5, 1.0, None]),  # budget that ran
    st.booleans(),  # whether the attack finds what there is
)


@settings(max_examples=25, deadline=None)
@given(st.lists(images, min_size=1, max_size=20))
def test_invariants_of_every_sound_table(drawn):
    rows = []
    for index, (right, truth, share, budget, keen) in enumerate(drawn):
        wrong = not right
        rows.append(row(index, "margin", share * truth if right else 0.0, wrong=wrong))
        found = truth if keen and (budget is None or truth <= budget) else INF
        rows.append(row(index, "pgd", found, eps=NAN if budget is None else budget, wrong=wrong))
    done = evaluation(*rows)
    frame = verdicts.summary(done, np.linspace(0, 2, 9))
    assert (frame[[f"count_{name}" for name in verdicts.STATES]].sum(axis=1) == len(drawn)).all()
    assert frame["clean"].nunique() == 1 and frame["certified"].is_monotonic_decreasing
    robust = frame["robust"].fillna(frame["clean"])
    assert (frame["certified"] <= robust).all() and (robust <= frame["clean"]).all()
    assert frame["robust"].dropna().is_monotonic_decreasing
    assert ((frame["robust"] - frame["certified"] - frame["open"]).dropna().abs() < 1e-12).all()
    assert len(verdicts.breaches(done)) == 0
    points = verdicts.curve(done)
    assert (points["robust"].dropna() == points.loc[points["tested"], "not_broken"]).all() and points["tested"].iloc[0]
    assert (points["certified"] <= points["not_broken"]).all() and {0.0, 0.5, 1.0} <= set(points["eps"])


def test_clopper_pearson_inverts_the_binomial_tails_and_agrees_with_scipy():
    for successes, n in [(0, 10), (10, 10), (3, 10), (470, 1000)]:
        low, high = verdicts.clopper_pearson(successes, n)
        theirs = binomtest(successes, n).proportion_ci(method="exact")
        assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
        assert successes == 0 or binom.sf(successes - 1, n, low) == pytest.approx(0.025)
        assert successes == n or binom.cdf(successes, n, high) == pytest.approx(0.025)
    assert verdicts.clopper_pearson(0, 10)[1] == pytest.approx(1 - 0.025**0.1) and verdicts.clopper_pearson(0, 0) == (0.0, 1.0)


def test_mcnemar_tosses_a_coin_for_each_discordant_pair():
    a = np.array([True] * 9 + [False] * 1 + [True] * 50)
    b = np.array([False] * 9 + [True] * 1 + [True] * 50)
    assert verdicts.mcnemar(a, b) == pytest.approx(2 * (1 + 10) / 2**10) == verdicts.mcnemar(b, a)
    assert verdicts.mcnemar(a, a) == 1.0
    with pytest.raises(UserError, match="same images"):
        verdicts.mcnemar(a, b[:3])


def test_holm_by_hand():
    assert verdicts.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert verdicts.holm([0.9, 0.8]) == pytest.approx([1.0, 1.0]) and len(verdicts.holm([])) == 0
    assert verdicts.holm([0.2, 0.01, 0.01, 0.01, 0.3]) == pytest.approx([0.4, 0.05, 0.05, 0.05, 0.4])  # equal ones stay equal


def some():
    rows = [row(3, "margin", 0.1 + 0.2), row(3, "pgd", INF, eps=36 / 255), row(4, "ddn", 1 / 3), row(5, wrong=True)]
    return evaluation(*rows, samples=3, command="§")


def test_write_and_read_give_the_same_table(tmp_path):
    done = some()
    path = verdicts.write(done, tmp_path / "new" / "table.parquet")
    again = verdicts.read(path)
    pd.testing.assert_frame_equal(again.table, done.table)
    assert again.about == done.about and again.path == path and [p.name for p in path.parent.iterdir()] == ["table.parquet"]
    verdicts.write(done, tmp_path / "new" / "parts" / "part.parquet")
    assert len(verdicts.read_all(tmp_path)) == 1 and verdicts.read_all(tmp_path / "absent") == []


def test_digest_leaves_out_order_and_seconds_and_nothing_else():
    table = some().table
    shuffled = table.sample(frac=1, random_state=1).assign(seconds=9.0)
    assert verdicts.digest(shuffled) == verdicts.digest(table) and len(verdicts.digest(table)) == 64
    for column, value in (("radius", 0.25), ("forwards", 9), ("weights", "v"), ("state_reason", "unknown")):
        assert verdicts.digest(table.assign(**{column: value})) != verdicts.digest(table)


def test_the_digest_is_that_of_the_whole_text_however_few_rows_are_text_at_once(monkeypatch):
    table = some().table
    text = table.sort_values(KEY)[COLUMNS].drop(columns="seconds").to_csv(index=False, lineterminator="\n")
    for rows in (1, 3, len(table), 10**6):
        monkeypatch.setattr("robustbench_rkhs.verdicts.table_text.ROWS", rows)
        assert verdicts.digest(table) == hashlib.sha256(text.encode()).hexdigest()
    assert verdicts.digest(table.iloc[:0]) != verdicts.digest(table)


def test_merge_is_canonical_and_drops_what_is_there_twice():
    table = some().table
    parts = [table.iloc[3:].assign(seconds=7.0), table.iloc[:4], table.iloc[2:]]
    assert verdicts.digest(verdicts.merge(parts)) == verdicts.digest(table) and len(verdicts.merge(parts)) == len(table)
    assert len(verdicts.merge([])) == 0
    with pytest.raises(UserError, match="not a table of verdicts"):
        verdicts.merge([table, table.assign(forwards=99)])
    with pytest.raises(UserError, match="two different images"):
        verdicts.merge([table, table.assign(method="other", input_sha256="0")[table["method"] == "margin"]])


FAULTS = {
    "negative radius": {"radius": -0.1},
    "NaN radius": {"radius": NAN},
    "unknown norm": {"norm": "l1"},
    "unknown reason": {"state_reason": "tired"},
    "unknown kind": {"kind": "guess"},
    "extra column": {"extra": 1},
    "a certificate with a budget": {"eps": 0.5},
    "a prediction that proves": {"radius": 0.5},
    "probability": {"failure_probability": 1.5},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_the_schema_refuses(fault, tmp_path):
    table = pd.DataFrame([row(0) | fault])
    with pytest.raises(UserError, match="not a table of verdicts") as refused:
        verdicts.write(Evaluation(table, About(**ABOUT)), tmp_path / "table.parquet")
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ({"norm": "l3"}, "column 'norm': expected one of 'l2', 'linf', found 'l3' in the first of 900 rows"),
        ({"radius": -1.0}, "column 'radius': expected at least 0, found '-1.0' in the first of 900 rows"),
        ({"failure_probability": 2.0}, "column 'failure_probability': expected at most 1, found '2.0' in the first of 900 rows"),
        ({"label": "cat"}, "column 'label': expected int64, found 'cat' in the first of 900 rows"),
        ({"method": ""}, "column 'method': expected a name, found '' in the first of 900 rows"),
        ({"eps": 0.5}, "a certificate has neither eps nor distances"),
    ],
)
def test_a_rule_of_the_schema_is_told_whole_whatever_the_number_of_rows(fault, line):
    table = pd.DataFrame([row(index) | fault for index in range(900)])
    with pytest.raises(UserError) as refused:
        verdicts.validate(table)
    assert str(refused.value) == f"not a table of verdicts: {line}"


def test_an_attack_measures_what_it_found():
    for fault in ({"distance_l2": NAN}, {"distance_l2": 0.3}, {"radius": INF}):
        with pytest.raises(UserError, match="not a table of verdicts"):
            verdicts.validate(pd.DataFrame([row(0, "pgd", 0.4) | fault]))


def test_damaged_and_foreign_files_are_one_clear_line(tmp_path):
    path = verdicts.write(some(), tmp_path / "table.parquet")
    whole = path.read_bytes()
    for size in (0, 3, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="cannot read verdicts") as refused:
            verdicts.read(path)
        assert "\n" not in str(refused.value)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(UserError, match="something else"):
        verdicts.read(path)
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({b"robustbench_rkhs": b"{}"}), path)
    with pytest.raises(UserError, match="not a table of verdicts"):
        verdicts.read(path)
    with pytest.raises(UserError, match="no verdicts at"):
        verdicts.read(tmp_path / "absent.parquet")


def test_states_refuse_what_they_cannot_answer():
    done = some()
    with pytest.raises(UserError, match="negative"):
        verdicts.states(done, -0.1)
    with pytest.raises(UserError, match="no row of method 'prediction'"):
        verdicts.states(Evaluation(done.table[done.table["method"] != "prediction"], done.about), 0.5)
    with pytest.raises(UserError, match="of one weights"):
        verdicts.states(Evaluation(pd.concat([done.table, done.table.assign(weights="v")]), done.about), 0.5)


def test_verdicts_and_reports_never_import_torch():
    code = "import sys, robustbench_rkhs.verdicts, robustbench_rkhs.reports as r; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@given(st.floats(1e-100, 8), st.integers(1, 3072), st.sampled_from(["l2", "linf"]), st.sampled_from(["l1", "l2", "linf"]))
def test_implied_balls_lie_inside_the_proved_one_and_no_larger_ball_does(radius, pixels, norm, other):
    """The farthest point of the implied ball, in the proved norm: its corner for linf, a multiple of one axis for l1 and l2."""
    found = Fraction(float(implied(np.array([radius]), norm, other, pixels)[0]))
    farthest = found**2 * (pixels if (norm, other) == ("l2", "linf") else 1)
    assert Fraction(radius) ** 2 * Fraction(1 - 1e-14) <= farthest <= Fraction(radius) ** 2
    assert np.isnan(implied(np.array([radius]), "l2", "linf", None)).all()
