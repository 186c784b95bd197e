"""Randomized smoothing: closed forms of a linear base, exact error rates of the stopping rules, draws that depend on nothing."""

import json
import math
from functools import cache, partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import betabinom, binom, norm
from torch import nn

from robustbench_rkhs import verdicts
from robustbench_rkhs.attacks import PGD
from robustbench_rkhs.certificates import MarginCertificate, SmoothingCertificate, binomial_limits, sequential
from robustbench_rkhs.evaluation.run import evaluate
from robustbench_rkhs.lipschitz import Uncertifiable
from robustbench_rkhs.networks.smoothed import Smoothed, noise
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.runtime.counter_rng import noisy
from robustbench_rkhs.runtime.digests import weights_digest
from robustbench_rkhs.training.recipe import TrainRecipe
from robustbench_rkhs.zoo import NamedModel, smoothed, smoothing_from

SIGMA, SHAPE = 0.25, (1, 2, 2)
RULES = ("fixed", "spending", "sequence", "betting")


def linear(sizes, sigma=SIGMA, classes=2, **settings):
    """A linear base of two classes (any further ones never win), and images at the given signed distances from its boundary."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, classes))
    direction = torch.tensor([1.0, -2.0, 0.5, 1.5])
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].weight[0] = direction
        model[1].bias.fill_(-1e3)
        model[1].bias[:2] = 0
    x = torch.tensor(sizes)[:, None] * direction / direction.norm()
    return Smoothed(model, sigma, **settings).eval(), x.reshape(-1, *SHAPE)


def certify(model, x, y=None, epsilons=(0.1, 0.25), keys=None, **settings):
    y = torch.zeros(len(x), dtype=torch.long) if y is None else y
    keys = torch.arange(len(x)) if keys is None else keys
    return SmoothingCertificate(**{"n": 1000, "n0": 50} | settings)(model, x, y, keys, epsilons)


# the certificate against the closed form


@pytest.mark.parametrize("classes", [2, 5])
def test_the_radius_of_a_linear_base_is_approached_from_below(classes):
    truth = [0.02, 0.1, 0.2, 0.3, 0.4]
    model, x = linear(truth, classes=classes)
    gaps = []
    for n in (1000, 10_000, 100_000):
        found = certify(model, x, n=n, stopping="fixed")
        gaps.append(torch.tensor(truth).double() - found.radius)
        assert (gaps[-1] > 0).all() and (found.forwards == 50 + n).all()
        # ten standard deviations of the share, through the quantile's slope
        shares = norm.cdf(np.array(truth) / SIGMA)
        wide = 10 * SIGMA * np.sqrt(shares * (1 - shares) / n) / norm.pdf(np.array(truth) / SIGMA)
        assert (gaps[-1].numpy() < wide).all()
    assert gaps[-1].max() < gaps[0].max() / 3


def test_linf_is_the_inclusion_of_balls():
    model, x = linear([0.2, 0.3])
    l2, linf = (certify(model, x, stopping="fixed", norm=norm).radius for norm in ("l2", "linf"))
    torch.testing.assert_close(linf, l2 / 2, rtol=1e-8, atol=0)
    assert (linf < l2 / 2).all()


@given(st.floats(0.5, 1 - 1e-6), st.floats(0.01, 10))
def test_the_radius_is_rounded_down(probability, sigma):
    radius = SmoothingCertificate().radius_of(probability, sigma, 4)
    assert radius == 0 or norm.cdf(radius / sigma) < probability
    assert probability < 0.501 or radius > 0.999 * sigma * norm.ppf(probability)


def test_abstention_is_a_radius_of_0_with_a_reason():
    model, x = linear([0.0, -0.3, 0.3, 1e-9])
    found = certify(model, x, stopping="fixed")
    assert (found.radius[[0, 1, 3]] == 0).all() and found.radius[2] > 0.2
    assert found.reason[2] == "" and found.reason[1] == ""  # wrong is not unknown
    picked = found.forwards > 50  # at a fair coin either class may be picked
    assert all((reason == "unknown") == bool(more) for reason, more in zip(found.reason[::3], picked[::3], strict=True))
    assert found.failure_probability.tolist() == [0, 0, 0.001, 0] and found.forwards[1] == 50


class Constant(nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, x):
        return self.logits.expand(len(x), -1)


def test_ties_and_numbers_that_are_not_finite_are_no_hits():
    x = torch.rand(3, *SHAPE)
    tied = certify(Smoothed(Constant([1.0, 1.0, 0.0]), SIGMA), x)
    assert (tied.radius == 0).all() and tied.reason == ["unknown"] * 3
    assert (certify(Smoothed(Constant([math.nan, 1.0]), SIGMA), x).radius == 0).all()
    x[1, 0, 0, 0] = math.nan
    sure = certify(Smoothed(Constant([1.0, 0.0]), SIGMA), x, epsilons=())
    assert sure.reason == ["", "error", ""] and sure.radius[1] == 0
    assert sure.radius[0] == pytest.approx(SIGMA * norm.ppf(0.001 ** (1 / 1000)), rel=1e-6)  # all 1000 of 1000


@pytest.mark.parametrize("rule", RULES)
def test_an_image_is_certified_alike_in_any_company(rule):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    model, x, keys = Smoothed(base, SIGMA), torch.rand(6, *SHAPE), torch.arange(6) * 7
    y = model(x).argmax(1)
    whole = certify(model, x, y, keys=keys, stopping=rule)
    turned = torch.tensor([5, 2, 0])
    part = certify(model, x[turned], y[turned], keys=keys[turned], stopping=rule)
    assert torch.equal(part.radius, whole.radius[turned]) and torch.equal(part.forwards, whole.forwards[turned])
    split = certify(model, x, y, keys=keys, stopping=rule, batch=70)
    assert torch.equal(split.radius, whole.radius)
    other = certify(model, x, y, keys=keys + 1, stopping="fixed", n=997)
    assert not torch.equal(other.radius, certify(model, x, y, keys=keys, stopping="fixed", n=997).radius)


class Counting(nn.Module):
    """Counts the images it is asked about, in a plain number."""

    def __init__(self, base):
        super().__init__()
        self.base, self.queried = base, 0

    def forward(self, x):
        self.queried += len(x)
        return self.base(x)


@pytest.mark.parametrize("rule", RULES)
def test_forwards_are_what_the_base_was_asked(rule):
    model, x = linear([0.29, 0.26, 0.12, -0.2, 0.9])
    model.base = Counting(model.base)
    found = certify(model, x, n=5000, stopping=rule)
    assert found.forwards.sum() == model.base.queried
    if rule == "fixed":
        assert found.forwards.tolist() == [5050] * 3 + [50, 5050]
    else:
        assert found.forwards[4] < 1000 and 1000 < found.forwards[1] <= 5050 and found.forwards[3] == 50
        assert found.radius[4] >= 0.25


def test_the_model_and_the_global_random_state_are_left_as_they_were():
    base = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3)).train()
    model, x = Smoothed(base, SIGMA), torch.rand(2, *SHAPE)
    before, random = weights_digest(model.state_dict()), torch.get_rng_state()
    first = certify(model, x)
    assert torch.equal(random, torch.get_rng_state())
    assert weights_digest(model.state_dict()) == before and base.training and base[1].training
    assert torch.equal(first.radius, certify(model.eval(), x).radius)  # no dropout and no batch statistics either way


def test_refusals_are_one_clear_line():
    model, x = linear([0.2])
    with pytest.raises(UserError, match=r"needs a smoothed classifier: rkhs-eval --smooth sigma=0.25$"):
        certify(model.base, x)
    with pytest.raises(UserError, match=r"sigma 0\.5, but the model is smoothed with 0\.25"):
        certify(model, x, sigma=0.5)
    with pytest.raises(Uncertifiable, match="Smoothed"):
        MarginCertificate()(model, x, torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long))
    with pytest.raises(UserError, match="smoothed already"):
        Smoothed(model, 0.1)
    with pytest.raises(UserError, match="positive sigma"):
        Smoothed(model.base, 0.0)
    with pytest.raises(UserError, match="votes of at least 1"):
        Smoothed(model.base, 0.1, votes=0)


# the stopping rules


@given(st.integers(100, 300_000), st.floats(1e-6, 0.4))
def test_the_looks_spend_alpha_and_end_at_n(n, alpha):
    plan, often = sequential.shares(n, alpha), sequential.moments(n)
    assert often == sorted(set(often)) and often[-1] == n and len(often) < 150
    numbers = [number for number, _ in plan]
    assert sum(share for _, share in plan) == pytest.approx(alpha, rel=1e-12) and all(share > 0 for _, share in plan)
    assert numbers == sorted(set(numbers)) and numbers[-1] == n
    for rule in RULES:
        assert [look.samples for look in sequential.looks(rule, n, alpha)][-1] == n


@given(st.integers(1, 5000), st.data())
def test_clopper_pearson_is_its_definition(n, data):
    hits, alpha = data.draw(st.integers(1, n)), data.draw(st.sampled_from([0.05, 0.001, 1e-5]))
    low = binomial_limits.lower_limit(hits, n, alpha)
    assert binom.sf(hits - 1, n, low * (1 - 1e-9)) <= alpha  # the certificate's own slack
    assert binom.sf(hits - 1, n, low) == pytest.approx(alpha, rel=1e-6)
    assert binomial_limits.lower_limit(0, n, alpha) == 0


@given(st.integers(1, 5000), st.data())
def test_the_mixture_limit_is_where_the_bettor_has_made_one_over_alpha(n, data):
    hits, alpha = data.draw(st.integers(0, n)), data.draw(st.sampled_from([0.05, 0.001]))
    low = binomial_limits.mixture_limit(hits, n, alpha)
    assert 0 <= low <= hits / n
    grid = (np.arange(40_000) + 0.5) / 40_000  # the integral over the bettor's prior, substituting q = sin^2
    q = np.sin(grid * np.pi / 2) ** 2
    if low > 0:
        money = np.exp(hits * np.log(q / low) + (n - hits) * np.log1p(-q) - (n - hits) * np.log1p(-low)).mean()
        assert money == pytest.approx(1 / alpha, rel=1e-3)


@given(st.integers(1, 3000), st.integers(1, 100_000), st.floats(0.001, 0.999))
def test_the_bettors_wealth_is_a_fair_game_where_p_is_true_and_a_losing_one_where_it_is_more_than_the_truth(n, horizon, p):
    hits = np.arange(n + 1)
    wealth = np.array([binomial_limits.log_wealth(int(s), n, p, horizon) for s in hits[:: max(1, n // 300)]])
    assert (np.diff(wealth) > 0).all()
    n = min(n, 60)  # the whole distribution, also where a single outcome holds nearly all of the expectation
    wealth = np.array([binomial_limits.log_wealth(s, n, p, horizon) for s in range(n + 1)])
    assert np.exp(wealth + binom.logpmf(np.arange(n + 1), n, p)).sum() == pytest.approx(1, rel=1e-9)
    assert np.exp(wealth + binom.logpmf(np.arange(n + 1), n, 0.9 * p)).sum() < 1
    steps = [binomial_limits.log_wealth(s + 1, n + 1, p, horizon) for s in range(n + 1)]
    losses = [binomial_limits.log_wealth(s, n + 1, p, horizon) for s in range(n + 1)]
    np.testing.assert_allclose(p * np.exp(steps - wealth) + (1 - p) * np.exp(losses - wealth), 1, rtol=1e-9)


@given(st.integers(1, 100_000), st.data())
def test_the_betting_limit_is_where_the_bettor_has_made_one_over_alpha(n, data):
    hits, alpha = data.draw(st.integers(0, n)), data.draw(st.sampled_from([0.05, 0.001]))
    low = binomial_limits.betting_limit(hits, n, alpha, 100_000)
    assert 0 <= low < max(hits / n, 1e-300)
    if low > 0:
        assert binomial_limits.log_wealth(hits, n, low, 100_000) == pytest.approx(-math.log(alpha), abs=1e-6)
        assert binomial_limits.log_wealth(hits, n, low / 2, 100_000) > -math.log(alpha)
    assert low >= binomial_limits.mixture_limit(hits, n, alpha) * 0.8 - 0.3 * (n < 30)  # the dearest case: all hits or nearly


def wrong_ever(p, plan):
    """Exact probability that a limit exceeds p at any look of the plan, by the distribution of the hits."""
    alive, gone, seen = np.ones(1), 0.0, 0
    for look in plan:
        alive = np.convolve(alive, binom.pmf(np.arange(look.samples - seen + 1), look.samples - seen, p))
        least = sequential.fewest(lambda hits, look=look: look.limit(hits) > p, look.samples)
        gone += alive[least:].sum()
        alive, seen = np.append(alive[:least], np.zeros(look.samples + 1 - least)), look.samples
    return gone


@pytest.mark.parametrize("p", [0.6, 0.84, 0.97])
def test_the_limits_err_with_probability_alpha_over_all_looks_and_naive_peeking_does_not(p):
    alpha, n = 0.05, 800
    for rule in RULES:
        assert 0.1 * alpha < wrong_ever(p, sequential.looks(rule, n, alpha)) <= alpha or rule == "sequence"
    naive = [sequential.looks("fixed", number, alpha)[0] for number, _ in sequential.shares(n, alpha)]
    assert wrong_ever(p, naive) > 1.5 * alpha
    always = [sequential.Look(at, partial(binomial_limits.betting_limit, n=at, alpha=alpha, horizon=n)) for at in range(1, 200)]
    assert 0.1 * alpha < wrong_ever(p, always) <= alpha  # asked after every single sample
    always = [sequential.Look(at, partial(binomial_limits.mixture_limit, n=at, alpha=alpha)) for at in range(20, 300, 40)]
    assert wrong_ever(p, always) <= alpha


# giving up


@given(st.integers(0, 400), st.integers(1, 400), st.data())
def test_a_forecast_is_the_beta_binomial_tail(n, rest, data):
    hits, needed = data.draw(st.integers(0, n)), data.draw(st.integers(0, n + rest + 1))
    found = sequential.forecast(hits, n, needed, n + rest)
    truth = betabinom.sf(needed - hits - 1, rest, hits + 0.5, n - hits + 0.5)
    mean = hits + rest * (hits + 0.5) / (n + 1)
    assert (found == 1 and truth > 0.1) if needed <= mean else found == pytest.approx(truth, rel=1e-6, abs=1e-12)


@given(st.integers(1, 300), st.integers(0, 301))
def test_the_fewest_hits_are_found(n, least):
    assert sequential.fewest(lambda hits: hits >= least, n) == min(least, n + 1)


@pytest.mark.parametrize("futility", [0.01, 0.2])
def test_of_what_is_given_up_hardly_any_would_have_been_proved(futility):
    """Exact, over the prior: the hits of n samples are an urn's, and each path is followed to its end."""
    n, share = 600, 0.8
    plan = sequential.looks("betting", n, 0.01)
    needed = sequential.fewest(lambda hits: plan[-1].limit(hits) >= share, n)
    alive, seen, stopped, lost = np.ones(1), 0, 0.0, 0.0
    for look in plan[:-1]:
        after = np.zeros(look.samples + 1)
        for hits, mass in enumerate(alive):
            more = look.samples - seen
            after[hits : hits + more + 1] += mass * betabinom.pmf(np.arange(more + 1), more, hits + 0.5, seen - hits + 0.5)
        alive, seen = after, look.samples
        for hits, mass in enumerate(alive):
            if mass and (chance := sequential.forecast(hits, seen, needed, n)) <= futility:
                stopped, lost, alive[hits] = stopped + mass, lost + mass * chance, 0
    assert stopped > 0.5 and 0 < lost <= futility * stopped


# the rules


@pytest.fixture
def remembered(monkeypatch):
    """Limits kept by their arguments: thousands of simulated images ask for the same few hundred."""
    for name in ("lower_limit", "mixture_limit", "betting_limit"):
        monkeypatch.setattr(sequential, name, cache(getattr(sequential, name)))


def estimated(generator, p, epsilons, **settings):
    """Whether a simulated image of share p is certified at the largest eps, and its samples."""
    certificate = SmoothingCertificate(**settings)
    plan, needed = certificate.plan(SIGMA, 4, [float(eps) for eps in epsilons])

    def radius(probability):
        return certificate.radius_of(probability, SIGMA, 4)

    while True:
        found = sequential.estimate(
            lambda begin, end: int(generator.binomial(end - begin, p)), radius, needed, plan, certificate.futility
        )
        yield radius(found.lower) >= max(epsilons), found.draws


def false_certificates(rule, images, n, alpha=0.05, p=0.84):
    """Share of simulated images of true radius just below the asked-for eps that are certified at it; nobody gives up."""
    eps = SIGMA * norm.ppf(p) * (1 + 1e-6)
    found = estimated(np.random.default_rng(0), p, [eps], alpha=alpha, n=n, stopping=rule, futility=1e-300)
    return sum(next(found)[0] for _ in range(images)) / images


def test_false_certificates_are_no_more_than_alpha_and_peeking_makes_them_more(monkeypatch, remembered):
    allowed = binom.ppf(0.999, 2000, 0.05) / 2000
    assert false_certificates("fixed", 2000, 800) <= allowed
    assert 0.01 < false_certificates("spending", 2000, 800) <= allowed
    assert 0.01 < false_certificates("betting", 2000, 800) <= allowed
    assert false_certificates("sequence", 200, 800) <= binom.ppf(0.999, 200, 0.05) / 200
    honest = sequential.shares
    monkeypatch.setattr(sequential, "shares", lambda n, alpha: [(number, alpha) for number, _ in honest(n, alpha)])
    assert false_certificates("spending", 2000, 800) > allowed


@pytest.mark.parametrize("rule", ["betting", "spending", "sequence"])
def test_giving_up_keeps_the_power_that_was_paid_for(rule, remembered):
    p = 0.9
    easy, hard = SIGMA * norm.ppf(p - 0.05), SIGMA * norm.ppf(p + 0.05)  # 4,000 draws tell them apart
    found = estimated(np.random.default_rng(1), p, [0.01, easy], n=4000, futility=0.05, stopping=rule)
    reached, draws = np.array([next(found) for _ in range(60)]).T
    assert reached.sum() >= 60 - binom.ppf(0.999, 60, 0.05) and draws.mean() < 2000
    found = estimated(np.random.default_rng(1), p, [0.01, hard], n=4000, futility=0.05, stopping=rule)
    reached, draws = np.array([next(found) for _ in range(60)]).T
    assert not reached.any() and draws.mean() < 1000


def test_a_bettor_takes_fewer_samples_than_shares_of_alpha(remembered):
    draws = {}
    for rule in ("betting", "spending", "sequence"):
        draws[rule] = 0.0
        for p in (0.8, 0.85, 0.9, 0.95, 0.99):
            found = estimated(np.random.default_rng(2), p, [SIGMA * norm.ppf(0.83)], n=20_000, stopping=rule)
            draws[rule] += np.mean([next(found)[1] for _ in range(20)])
    assert draws["betting"] < 0.9 * draws["spending"] and draws["betting"] < 0.9 * draws["sequence"]


# the classifier


def test_draws_are_counted_by_their_number_alone():
    whole = noise(SHAPE, 0, 450, 3, 5)
    assert whole.shape == (450, *SHAPE) and abs(whole.mean()) < 0.1 and abs(whole.std() - 1) < 0.1
    for begin, end in ((0, 1), (99, 101), (100, 200), (317, 450), (7, 7)):
        assert torch.equal(noise(SHAPE, begin, end, 3, 5), whole[begin:end])
    assert not torch.equal(noise(SHAPE, 0, 450, 3, 6), whole)


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()


def test_the_answer_is_the_vote_and_its_gradient_the_soft_votes():
    base = net()
    model = Smoothed(base, 0.5, votes=250, seed=4)
    x = torch.rand(5, *SHAPE, dtype=torch.float64).requires_grad_()
    z = noise(SHAPE, 0, 250, 4, 1).double()
    logits = base((x[:, None] + 0.5 * z).reshape(-1, *SHAPE)).view(5, 250, 3)
    counts = torch.stack([(logits.argmax(2) == c).sum(1) for c in range(3)], 1)
    found = model(x)
    torch.testing.assert_close(found, ((counts + 1) / 253).log().double())
    assert (found < 0).all() and 0 < (counts.amax(1) < 250).sum()
    weights = torch.randn(5, 3, dtype=torch.float64)
    (ours,) = torch.autograd.grad((weights * found).sum(), x, retain_graph=True)
    (soft,) = torch.autograd.grad((weights * logits.softmax(2).mean(1).log()).sum(), x)
    torch.testing.assert_close(ours, soft)
    with torch.no_grad():
        assert torch.equal(model(x), found) and torch.equal(model(x[2:3]).argmax(1), found[2:3].argmax(1))


def test_many_images_are_asked_some_draws_at_a_time(monkeypatch):
    model, x = Smoothed(net(), 0.5, votes=30), torch.rand(7, *SHAPE, dtype=torch.float64)
    whole = model(x)
    monkeypatch.setattr("robustbench_rkhs.networks.smoothed.PASSES", 20)
    torch.testing.assert_close(model(x), whole, rtol=1e-12, atol=0)


def test_an_answer_that_is_not_finite_is_no_vote():
    assert Smoothed(Constant([math.nan, 1.0]), SIGMA)(torch.rand(2, *SHAPE)).isnan().all()


def test_the_digest_covers_base_and_settings():
    base = net()
    settings = [{}, {"sigma": 0.5}, {"votes": 99}, {"recount": 99}, {"seed": 1}]
    digests = {weights_digest(Smoothed(base, **{"sigma": 0.25} | one).state_dict()) for one in settings}
    assert len({weights_digest(base.state_dict()), weights_digest(Smoothed(net(1), 0.25).state_dict())} | digests) == 7
    with pytest.raises(UserError, match="weights of a classifier smoothed with"):
        Smoothed(net(), 0.5).load_state_dict(Smoothed(base, 0.25).state_dict())
    assert "sigma=0.25, votes=100" in repr(Smoothed(base, 0.25))


def test_a_label_that_wins_is_hardly_ever_proved_to_lose():
    truth = [0.0, 0.05, -0.3]
    alpha, proofs = 0.05, np.zeros(3)
    for seed in range(200):
        model, x = linear(truth, recount=100, seed=seed)
        proofs += model.loses(x, torch.zeros(3, dtype=torch.long), alpha).numpy()
    assert proofs[0] <= binom.ppf(0.999, 200, alpha) and proofs[1] <= proofs[0] and proofs[2] > 150


# evaluation


def test_an_evaluation_is_sound_and_a_false_certificate_is_caught(monkeypatch):
    model, x = linear(np.linspace(0.05, 0.4, 12).tolist(), votes=20, recount=2000)
    x = x - x.amin() if x.amin() < 0 else x
    with torch.no_grad():  # the images moved into [0, 1], the boundary with them
        moved = (x - linear(np.linspace(0.05, 0.4, 12).tolist())[1])[0]
        model.base[1].bias[0] -= (model.base[1].weight[0] * moved.flatten()).sum()
    y = torch.zeros(len(x), dtype=torch.long)
    queried = {"eps": (0.1, 0.2), "attacks": (PGD(steps=10, box="none"),)}
    settings = {"certificates": (SmoothingCertificate(n=2000),)}
    done = evaluate(model, (x, y), **queried, **settings)
    proofs = done.table[done.table["method"] == "smoothing"]
    assert (proofs["failure_probability"].to_numpy() == np.where(proofs["radius"] > 0, 0.001, 0)).all()
    assert (proofs["forwards"] > 100).all() and done.about.smoothed.startswith("sigma=0.25")
    assert not done.about.breaches and verdicts.breaches(done).empty
    assert verdicts.summary(done)["certified"].iloc[0] > 0.5
    original = SmoothingCertificate.__call__

    def overstated(self, *args):
        found = original(self, *args)
        return found._replace(radius=found.radius * 2)

    monkeypatch.setattr(SmoothingCertificate, "__call__", overstated)
    false = evaluate(model, (x, y), **queried, **settings)
    assert {breach.cause for breach in false.about.breaches} == {"proof error"}


def test_defaults_of_a_smoothed_model_are_its_own():
    model, x = linear([0.2, 0.3])
    done = evaluate(model, ((x - x.amin()).clamp(0, 1), torch.zeros(2).long()), eps=(0.0,), samples=1)
    assert done.about.certificates == ("smoothing",) and done.about.protocol == ("pgd",)


# training and the commands

TINY = {
    "data": {"name": "digits", "train": 100, "validation": 50},
    "network": {"name": "mlp", "hidden": [8]},
    "epochs": 1,
    "batch_size": 50,
}


def test_training_noise_has_its_size_and_is_counted(tmp_path):
    x, keys = torch.zeros(50, 400), torch.arange(50)
    first = noisy(x, 0.25, keys, 0, 7)
    assert abs(first.std() - 0.25) < 0.01 and torch.equal(noisy(x[3:5], 0.25, keys[3:5], 0, 7), first[3:5])
    assert noisy(x, 0.0, keys) is x
    from robustbench_rkhs.training.run import Run

    finals = []
    for scale in (0.0, 0.25, 0.25):
        recipe = TrainRecipe.parse(TINY | {"noise": scale})
        splits = recipe.data.load()
        run = Run(recipe, splits.test, "cpu")
        for step, x, y, keys in run.batches(splits.train):
            run.step(step, x, y, keys)
        finals.append(weights_digest(run.model.state_dict()))
        moved = run.under_noise(splits.validation).x - splits.validation.x
        assert abs(moved.std() - scale) < 0.01 and torch.equal(run.under_noise(splits.validation).x - splits.validation.x, moved)
    assert finals[1] == finals[2] != finals[0]


def test_noise_leaves_the_box_and_so_must_the_attack():
    for key in ("attack", "validate_with"):
        with pytest.raises(UserError, match=f"give {key} box none, found box unit"):
            TrainRecipe.parse(TINY | {"noise": 0.1, key: {"name": "pgd", "eps": 0.1}})
        assert TrainRecipe.parse(TINY | {"noise": 0.1, key: {"name": "pgd", "eps": 0.1, "box": "none"}}).noise == 0.1


def test_a_smoothed_subject_is_a_model_of_its_own():
    votes, certificate = smoothing_from("sigma=1/4,n=500,votes=10", seed=3)
    assert (votes, certificate) == ({"votes": 10}, SmoothingCertificate(sigma=0.25, n=500, seed=3))
    split = TrainRecipe.parse(TINY).data.test()
    named = smoothed(NamedModel("digits_mlp", net(), split), 0.25, **votes)
    assert named.name == "digits_mlp~smoothed-0.25" and isinstance(named.model, Smoothed) and named.model.votes == 10


MISTAKES = {
    "no sigma": (["--smooth", "n=100"], "expected sigma=0.25"),
    "sigma": (["--smooth", "sigma=-1"], "greater than 0"),
    "field": (["--smooth", "sigma=1,nn=3"], "did you mean 'n'"),
    "no field": (["--smooth", "0.25"], "expected field=value, found '0.25'"),
    "votes": (["--smooth", "sigma=1,votes=0"], "votes of at least 1"),
    "plain": (["--certify", "smoothing"], "needs a smoothed classifier"),
}


def test_the_command_end_to_end(tmp_path):
    from test_cli import rkhs

    recipe = tmp_path / "small.yaml"
    recipe.write_text(TrainRecipe.parse(TINY | {"noise": 0.25}).yaml())
    rkhs("train", "--model", recipe, "--out", "small", folder=tmp_path)
    assert "Gaussian noise of standard deviation 0.25" in (tmp_path / "small/README.md").read_text()
    flags = ["--model", "small", "--eps", "0.05", "--samples", "6", "--attack", "pgd:steps=2"]
    out, err = rkhs("evaluate", *flags, "--smooth", "sigma=0.25,n=400,votes=10", "--json", folder=tmp_path)
    done = json.loads(out)["evaluations"][0]
    assert done["about"]["model"] == "small~smoothed-0.25" and done["about"]["certificates"] == ["smoothing"]
    assert done["about"]["smoothed"] == "sigma=0.25, votes=10, recount=1000, seed=0"
    assert "wrong with probability at most 0.001" in err or done["summary"][0]["certified"] == 0
    for typed, line in MISTAKES.values():
        _, said = rkhs("evaluate", *flags, *typed, folder=tmp_path, code=2)
        assert line in said and said.count("error: ") == 1
