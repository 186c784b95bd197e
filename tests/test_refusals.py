"""Refusals from the graph: everything that is missing in one line, before anything is computed, once for all certificates."""

import re
from types import SimpleNamespace

import pytest
import torch
from heard import messages_into
from torch import nn

from robustbench_rkhs.attacks import engine
from robustbench_rkhs.bounds.sketch import LISTED, sketch
from robustbench_rkhs.certificates import (
    AlphaCrownCertificate,
    CrownCertificate,
    EclipseCertificate,
    IBPCertificate,
    LipLTCertificate,
    MarginCertificate,
    SdpCrownCertificate,
)
from robustbench_rkhs.certificates.refusals import in_lines, refusals
from robustbench_rkhs.evaluation import attack_phase, sizing
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.lipschitz import Uncertifiable
from robustbench_rkhs.runtime import clock

PORTFOLIO = {
    one.label: one
    for one in (
        MarginCertificate(),
        LipLTCertificate(),
        EclipseCertificate(),
        IBPCertificate(norm="l2"),
        CrownCertificate(),
        AlphaCrownCertificate(),
        SdpCrownCertificate(),
    )
}
ran = []


class Attending(nn.Module):
    """Two blocks of attention, as vision transformers have them; notes with what it is run."""

    def __init__(self):
        super().__init__()
        self.cut = nn.Conv2d(1, 8, 4, 4)
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(4))
        self.attentions = nn.ModuleList(nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        ran.append(getattr(x, "device", None))
        x = self.cut(x).flatten(2).transpose(1, 2)
        for number, attention in enumerate(self.attentions):
            y = self.norms[number](x)
            x = x + attention(y, y, y)[0]
        return self.head(self.norms[2](x)[:, 0])


class Named(nn.Module):
    """A layer without a rule; each class of it is a kind of its own."""

    def forward(self, x):
        return x.softmax(1)


def test_all_that_is_missing_is_said_in_one_line_and_nothing_is_computed():
    model = Attending().eval()
    ran.clear()
    found = refusals(PORTFOLIO, model, (1, 16, 16), "l2")
    assert len(set(found.values())) == 1 and list(found) == list(PORTFOLIO)
    (line,) = in_lines(found)
    assert line.startswith("margin, liplt, eclipse, ibp, crown, alpha_crown, sdp_crown: no proven Lipschitz bound for ")
    for part in (r"attentions\.0 \(MultiheadAttention\): attention multiplies values that all depend on the image",):
        assert re.search(part, line), (part, line)
    assert "\n" not in line and len(ran) == 1  # once, on a symbol
    for certificate in PORTFOLIO.values():
        with pytest.raises(Uncertifiable, match=re.escape(found["margin"])):
            certificate(model, torch.rand(2, 1, 16, 16), torch.zeros(2, dtype=torch.int64), torch.arange(2), (0.1,))
    assert not any(isinstance(one, torch.device) and one.type == "cpu" for one in ran)


def test_a_chain_is_refused_with_all_its_layers():
    model = nn.Sequential(nn.Linear(4, 4), nn.Softmax(1), nn.Sequential(nn.Tanhshrink(), nn.Softmax(1)), nn.Linear(4, 2)).eval()
    wanted = "no proven Lipschitz bound for 1 (Softmax): no rule for this type of layer (2 such); nor for 2.0 (Tanhshrink): no rule"
    assert sketch(model, (4,)).refusal.startswith(wanted)
    with pytest.raises(Uncertifiable, match=re.escape(wanted)):
        MarginCertificate()(model, torch.rand(1, 4), torch.zeros(1, dtype=torch.int64), torch.arange(1), ())


def test_many_kinds_are_counted():
    kinds = [
        nn.Softmax(1),
        nn.Softmax2d(),
        nn.LogSigmoid(),
        nn.Softmin(1),
        nn.Tanhshrink(),
        nn.Hardshrink(),
        nn.GLU(1),
        nn.RReLU(),
        nn.Softshrink(),
        nn.Softshrink(),
        nn.Threshold(0.1, 20),
    ]
    model = nn.Sequential(nn.Linear(4, 4), *kinds).eval()
    line = sketch(model, (4,)).refusal
    missing = sum(1 for _ in re.finditer("no rule", line))
    assert missing <= LISTED and re.search(r"nor for \d+ more kinds$", line)


def test_a_norm_that_is_not_certified_comes_first():
    class Round(MarginCertificate):
        norms = frozenset({"l2"})

    found = refusals({"round": Round(), "margin": MarginCertificate()}, nn.Linear(4, 2).eval(), (4,), "linf")
    assert found == {"round": "it certifies l2 only"}


def test_width_and_kinks_are_seen_without_their_numbers():
    model = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 144, 2)).eval()
    found = refusals(PORTFOLIO | {"crown": CrownCertificate(neurons=4607)}, model, (1, 12, 12), "l2")
    assert found["eclipse"].startswith("no ECLipsE bound up to 1 (ReLU): 4608 features are too wide")
    assert found["crown"] == "4,608 values at kinks, expected at most 4,607: raise `neurons` to certify it all the same, slowly"
    assert set(found) == {"eclipse", "crown"}


def test_a_wide_activation_in_a_branch_stops_nothing():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.act, self.down, self.head = nn.Linear(4, 2100), nn.ReLU(), nn.Linear(2100, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(x + self.down(self.act(self.up(x))))

    model = Block().eval()
    assert not refusals({"eclipse": EclipseCertificate()}, model, (4,), "l2")
    assert (
        EclipseCertificate()(model, torch.rand(1, 4), model(torch.rand(1, 4)).argmax(1), torch.arange(1), ())
        .radius.isfinite()
        .all()
    )


def test_a_model_that_asks_for_numbers_is_left_to_its_certificates():
    class Asking(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 2)

        def forward(self, x):
            return self.a(x) * float(self.a.weight.abs().max().item() > 0)

    assert sketch(Asking().eval(), (4,)).refusal == ""


def test_an_evaluation_says_each_reason_once_and_marks_every_image():
    model, x = Attending().eval(), torch.rand(3, 1, 16, 16)
    said = []
    done = evaluate(
        model, (x, model(x).argmax(1)), eps=(0.1,), attacks=("pgd:steps=1",), diagnostics=False, on_event=messages_into(said)
    )
    (line,) = done.about.refused
    assert [one for one in said if one.startswith("no certificate")] == [f"no certificate: {line}"]
    rows = done.table[(done.table["kind"] == "certificate") & (done.table["method"] != "prediction")]
    assert (
        (rows["state_reason"] == "refused").all() and (rows.groupby("method").size() == 3).all() and rows["method"].nunique() == 7
    )


def test_a_budget_that_leaves_no_time_to_ask_about_every_image_takes_fewer(monkeypatch):
    class Slow(nn.Linear):
        def forward(self, x):
            time[0] += len(x)  # a second an image
            return super().forward(x.flatten(1))

    time, model, x, said = [0.0], Slow(16, 3).eval(), torch.rand(40, 1, 4, 4), []
    y = model(x).argmax(1)
    for module in (sizing, clock, engine, attack_phase):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: time[0]))
    time[0] = 0.0
    done = evaluate(model, (x, y), eps=(0.1,), attacks=("pgd:steps=1",), certificates=(), budget=28.0, on_event=messages_into(said))
    assert 4 <= done.about.samples <= 10 and not done.about.complete and done.about.incomplete_because == "budget"
    assert any(f"time for {done.about.samples} of 40 images" in line for line in said)
    assert time[0] <= 1.1 * 28 + 1  # eight seconds of them for the answers to the fixed images, which come last
