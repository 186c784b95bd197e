"""What a caller has switched, and how a model is written, change no result: the same table, or one line of refusal."""

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_rkhs import UserError, attack, certify, evaluate, load_model, robust_accuracy, train, verdicts
from robustbench_rkhs.networks import OwnNetwork
from robustbench_rkhs.runtime.caller_context import own_context

SHAPE, CLASSES = (1, 4, 4), 4
X = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, CLASSES)]
    return nn.Sequential(*layers).eval()


NET = network()
Y = NET(X).argmax(1)


@contextlib.contextmanager
def default_type(kind: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


CONTEXTS: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "float64 by default": functools.partial(default_type, torch.float64),
    "float16 by default": functools.partial(default_type, torch.float16),
    "bfloat16 by default": functools.partial(default_type, torch.bfloat16),
    "device meta": functools.partial(torch.device, "meta"),
    "autocast switched off": functools.partial(torch.autocast, "cpu", enabled=False),
    "deterministic algorithms": deterministic,
    "anomaly detection": functools.partial(torch.autograd.set_detect_anomaly, True),
    "tensors saved elsewhere": torch.autograd.graph.save_on_cpu,
}

KINDS = {"inference_mode", "bfloat16 by default", "device meta"}


def table() -> Any:
    return verdicts.digest(evaluate(NET, (X, Y), eps=0.5, effort="quick").table)


def trained(folder: Path) -> Any:
    record = train("digits_mlp", folder / "m", epochs=1)
    return record["loss"], hashlib.sha256((folder / "m/model.safetensors").read_bytes()).hexdigest()


def loaded() -> Any:
    named = load_model("digits_mlp")
    tensors = [*named.model.parameters(), named.test.x]
    return [(one.dtype, one.device, one.is_inference(), float(one.detach().double().sum())) for one in tensors]


VERBS: dict[str, Callable[[Path], Any]] = {
    "evaluate": lambda folder: table(),
    "certify": lambda folder: certify(NET, X, Y).tolist(),
    "attack": lambda folder: attack(NET, X, Y, eps=0.5).tolist(),
    "robust_accuracy": lambda folder: robust_accuracy(NET, X, Y, eps=0.5, effort="quick", certificates=()),
    "load_model": lambda folder: loaded(),
    "evaluate by name": lambda folder: verdicts.digest(evaluate("digits_mlp", eps=0.2, samples=3, effort="quick").table),
    "train": trained,
}


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(__file__).parent.parent)
        return {verb: call(tmp_path_factory.mktemp("plain")) for verb, call in VERBS.items()}


DEAR = {"robust_accuracy", "evaluate by name", "train"}
"""Verbs that take long: they meet one context of each kind (a mode, a type, a device), the others meet all."""
MET = [(verb, name) for verb in VERBS for name in CONTEXTS if verb not in DEAR or name in KINDS]


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize(("verb", "context"), MET)
def test_the_callers_context_changes_no_result_and_is_left_as_it_was(
    verb: str, context: str, plain: dict[str, Any], tmp_path: Path
) -> None:
    with CONTEXTS[context]():
        before = switches()
        found = VERBS[verb](tmp_path)
        assert switches() == before
    assert found == plain[verb]


def switches() -> Any:
    return (
        (torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        (torch.is_anomaly_enabled(), torch.are_deterministic_algorithms_enabled(), torch.is_autocast_enabled("cpu")),
    )


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "load_model"])
def test_autocast_is_refused_in_one_line(verb: str, tmp_path: Path) -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(UserError, match=r"^under autocast to torch.bfloat16 on cpu .*\.?"):
        VERBS[verb](tmp_path)


def test_what_a_builder_switches_ends_with_it(tmp_path: Path) -> None:
    lines = ["import torch", "torch.set_default_dtype(torch.float64)", "torch.set_grad_enabled(False)"]
    lines += ["torch.set_default_device('meta')", "def build(): return torch.nn.Linear(2, 2, device='cpu')"]
    (tmp_path / "switching.py").write_text("\n".join(lines))
    before = switches()
    load_model(f"{tmp_path / 'switching.py'}:build")
    assert switches() == before


def test_own_context_restores_everything_after_an_error() -> None:
    before = switches()
    with pytest.raises(KeyError), own_context():
        torch.set_default_dtype(torch.float16)
        torch.set_default_device("meta")
        torch.autograd.set_detect_anomaly(True)
        raise KeyError
    assert switches() == before


class Writes(nn.Module):
    """A model that changes its images before it classifies them."""

    def __init__(self, write: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.write = network(), write

    def forward(self, x: Tensor) -> Tensor:
        self.write(x)
        return self.net(x)


def cut(x: Tensor) -> Tensor:
    x[x > 0.95] = 0.9
    return x


WRITES: dict[str, tuple[Callable[[Tensor], Any], Callable[[Tensor], Tensor]]] = {
    "by a method": (lambda x: x.sub_(0.1), lambda x: x - 0.1),
    "by an index": (lambda x: x.__setitem__((..., 0, 0), 0.5), lambda x: x * (1 - CORNER) + 0.5 * CORNER),
    "for some images": (lambda x: cut(x) if (x > 0.95).any() else x, lambda x: cut(x.clone())),
    "unseen by autograd": (lambda x: x.data.mul_(0.5), lambda x: x * 0.5),
}
CORNER = torch.zeros(SHAPE)
CORNER[..., 0, 0] = 1


@pytest.mark.parametrize(("write", "truth"), WRITES.values(), ids=WRITES)
def test_a_model_that_writes_into_its_images_gets_copies(write: Any, truth: Any) -> None:
    model, images = Writes(write), X.clone()
    labels = NET(truth(images)).argmax(1)
    found = evaluate(model, (images, labels), eps=4.0, attacks="superdeepfool", diagnostics=False, certificates=())
    adversarial = attack(model, images, labels, eps=4.0)
    assert torch.equal(images, X) and found.about.failed == () and found.summary()["clean"].iloc[0] == 1
    assert found.robust_accuracy(4.0) == 0
    assert torch.equal(
        NET(torch.cat([truth(one[None].clone()) for one in adversarial])).argmax(1) != labels, torch.ones(len(X)).bool()
    )


def test_a_first_layer_in_place_is_attacked_and_certified() -> None:
    model = nn.Sequential(nn.Hardtanh(0, 1, inplace=True), *network()).eval()
    images = X.clone()
    done = evaluate(model, (images, Y), eps=(0.02, 4.0), attacks="superdeepfool", diagnostics=False, certificates="margin")
    assert torch.equal(images, X) and done.about.failed == () and done.robust_accuracy(4.0) == 0
    assert done.certified_accuracy(0.02) > 0


class Cast(nn.Module):
    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.made = network(), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.made(self.net, x)


def in_autocast(net: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return net(x).float()


SAME: dict[str, Callable[[], Any]] = {  # made by the test, as to compile takes seconds
    "logits in float64": lambda: Cast(lambda net, x: net(x).double()),
    "logits in float64, far from 0": lambda: Cast(lambda net, x: net(x).double() + 1e10),
    "compiled": lambda: torch.compile(network(), backend="aot_eager"),
    "a compiled function": lambda: torch.compile(lambda x: NET(x), backend="aot_eager"),
    "a lambda": lambda: lambda x: NET(x),
    "a partial": lambda: functools.partial(lambda net, x: net(x), NET),
    "traced": lambda: torch.jit.trace(network(), X[:2]),
    "a graph": lambda: torch.fx.symbolic_trace(network()),
}
SETTINGS: dict[str, Any] = {"eps": (0.1, 0.3, 4.0), "effort": "quick", "certificates": (), "diagnostics": False}


@pytest.fixture(scope="module")
def truth() -> Any:
    return evaluate(NET, (X, Y), **SETTINGS)


@pytest.mark.parametrize("model", SAME.values(), ids=SAME)
def test_models_of_any_kind_get_the_table_of_the_plain_one(model: Any, truth: Any) -> None:
    found = evaluate(model(), (X, Y), **SETTINGS)
    assert found.about.failed == ()
    for eps in SETTINGS["eps"]:
        assert found.robust_accuracy(eps) == truth.robust_accuracy(eps)


def test_the_original_of_a_compiled_model_is_certified() -> None:
    assert torch.equal(certify(torch.compile(network(), backend="eager"), X, Y), certify(NET, X, Y))


ROUNDED: dict[str, Any] = {
    "bfloat16 weights": network().bfloat16(),
    "half weights": network().half(),
    "autocast inside": Cast(in_autocast),
    "a cast inside": Cast(lambda net, x: net(x.bfloat16().float())),
    "a cast of logits": Cast(lambda net, x: net(x).bfloat16()),
}


@pytest.mark.parametrize("model", ROUNDED.values(), ids=ROUNDED)
def test_a_model_in_half_precision_is_attacked_on_the_images_given_and_certified_nowhere(model: Any) -> None:
    queried = Cast(lambda net, x: model(x.to(next(model.parameters()))).float())
    done = evaluate(model, (X, Y), eps=(0.001, 4.0), effort="quick", adversarials=True)
    assert done.robust_accuracy(4.0) == 0 and done.certified_accuracy(0.001) == 0 and not done.about.breaches
    assert "softmaxed" not in done.about.marks
    found = done.adversarials()
    assert found.images.dtype == torch.float32
    assert (queried(found.images).argmax(1) != found.labels).all()
    distance = (found.images.double() - X[found.index].double()).flatten(1).norm(dim=1)
    torch.testing.assert_close(found.distances, distance, rtol=1e-9, atol=1e-12)
    with pytest.raises(UserError, match=r"nothing can be proved of this model; .*(float16|autocast|no rule for this operation)"):
        certify(model, X, Y)


def test_a_certificate_holds_for_the_float64_image_that_was_given() -> None:
    given = X.double() + 1e-9 * torch.linspace(-1, 1, X.numel(), dtype=torch.float64).view_as(X)
    given, said = given.clamp(0, 1), list[str]()
    moved = (given - given.float().double()).flatten(1).norm(dim=1)
    radii, rounded = certify(NET, given, Y), certify(NET, given.float(), Y)
    assert (moved > 0).all() and (radii <= rounded - moved).all() and (radii >= rounded - 2 * moved).all()
    evaluate(NET, (given, Y), eps=0.1, attacks="superdeepfool", diagnostics=False, on_event=lambda event: said.append(str(event)))
    assert any("images of float64 are rounded to float32" in line for line in said)


def test_a_network_that_writes_into_its_images_is_not_trained() -> None:
    with pytest.raises(UserError, match="writes into its images"):
        own = OwnNetwork()
        own._source, own._name = Writes(lambda x: x.sub_(0.1)), "Writes"
        own.build(SHAPE, CLASSES)
