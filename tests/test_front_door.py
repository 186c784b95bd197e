"""Natural first calls: each gives a table of verdicts, or one line that says what to do. The command line says the same."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset
from torchvision.transforms import Normalize

import robustbench_rkhs
from robustbench_rkhs import UserError, attack, certify, evaluate, load_model, report, robust_accuracy, verdicts
from robustbench_rkhs.certificates import Certificate
from robustbench_rkhs.runtime import clock

COUNT, CLASSES, SHAPE = 6, 4, (1, 4, 4)
X = torch.rand(COUNT, *SHAPE, generator=torch.Generator().manual_seed(0))
FAST: dict[str, Any] = {"attacks": "superdeepfool", "certificates": (), "diagnostics": False}


class Net(nn.Module):
    """A linear classifier of flat images."""

    def __init__(self, size: int = 16, classes: int = CLASSES) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.linear = nn.Linear(size, classes)

    def forward(self, x: Tensor) -> Any:
        return 4 * self.linear(x.flatten(1) - 0.5)


class Conv(nn.Module):
    """A small convolutional classifier of so many channels."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.conv, self.drop, self.head = nn.Conv2d(channels, 3, 3, padding=1), nn.Dropout(0.5), nn.Linear(48, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.conv(x).relu().flatten(1)))


class Returns(nn.Module):
    """A classifier whose logits are made into something else."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.make = Net(), make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.net(x))


class Items(Dataset[Any]):
    """A data set of whatever items."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> Any:
        return self.items[place]


class Flow(IterableDataset[Any]):
    """Items in a row."""

    def __iter__(self) -> Any:
        return iter(zip(X, Y, strict=True))


class Endless(Dataset[Any]):
    """A data set that does not say how long it is."""

    def __getitem__(self, place: int) -> Any:
        return X[place % COUNT], 0


class Endlessly(Certificate):
    """A certificate that takes all the time there is."""

    norms: ClassVar[frozenset[str]] = frozenset({"l2"})

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, keys: Tensor, epsilons: Any) -> Any:
        while True:
            clock.ask()


class NoEval(Net):
    """A model without an eval mode."""

    def eval(self) -> "NoEval":
        raise NotImplementedError("no eval")


class NoBackward(torch.autograd.Function):
    """The identity, whose backward pass fails."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        raise ValueError("no backward")


def blind(x: Tensor) -> Tensor:
    """A model that lets no gradient pass."""
    with torch.no_grad():
        return NET(x)


def raises(error: BaseException) -> Callable[[Tensor], Any]:
    def make(logits: Tensor) -> Any:
        raise error

    return make


NET, CONV = Net(), Conv()
with torch.inference_mode():
    BLIND = Net()
Y = NET(X).argmax(1)
PAIRS = [(X[i], int(Y[i])) for i in range(COUNT)]
LOADER = DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True)
BYTES = (X * 255).round().byte()

TAKEN: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "tensors": (NET, (X, Y), {}),
    "a list of two": (NET, [X, Y], {}),
    "numpy": (NET, (X.numpy(), Y.numpy()), {}),
    "lists of numbers": (NET, (X.tolist(), Y.tolist()), {}),
    "lists of tensors": (NET, (list(X), list(Y)), {}),
    "eps as text": (NET, (X, Y), {"eps": "8/255"}),
    "several eps": (NET, (X, Y), {"eps": [0.1, "16/255"]}),
    "eps as a tensor": (NET, (X, Y), {"eps": torch.tensor(0.1)}),
    "eps as numpy numbers": (NET, (X, Y), {"eps": np.array([0.1, 0.2])}),
    "eps 0": (NET, (X, Y), {"eps": 0}),
    "norm linf": (NET, (X, Y), {"norm": "linf"}),
    "a function": (lambda x: NET(x), (X, Y), {}),
    "a bound method": (NET.forward, (X, Y), {}),
    "train mode": (Conv().train(), (X, Y), {}),
    "a TensorDataset": (NET, TensorDataset(X, Y), {}),
    "a Subset": (NET, Subset(TensorDataset(X, Y), [1, 2, 4]), {}),
    "a list of pairs": (NET, PAIRS, {}),
    "a data set of pairs": (NET, Items(PAIRS), {}),
    "a data set of mappings": (NET, Items([{"image": x, "label": y} for x, y in PAIRS]), {}),
    "a data set of triples": (NET, Items([(x, y, "name") for x, y in PAIRS]), {}),
    "an iterable data set": (NET, Flow(), {}),
    "a DataLoader": (NET, LOADER, {}),
    "a DataLoader of mappings": (NET, DataLoader(Items([{"pixel_values": x, "labels": y} for x, y in PAIRS]), batch_size=5), {}),
    "device auto": (NET, (X, Y), {"device": "auto"}),
    "device cpu": (NET, (X, Y), {"device": torch.device("cpu")}),
    "images that require grad": (NET, (X.clone().requires_grad_(), Y), {}),
    "images that are not contiguous": (NET, (X.expand(COUNT, 1, 4, 4).transpose(2, 3).contiguous().transpose(2, 3), Y), {}),
    "half images": (NET, (X.half(), Y), {}),
    "bfloat16 images": (NET, (X.bfloat16(), Y), {}),
    "float64 images": (NET, (X.double(), Y), {}),
    "bfloat16 weights": (Net().bfloat16(), (X, Y), {}),
    "half weights": (Net().half(), (X, Y), {}),
    "float64 weights": (Net().double(), (X, Y), {}),
    "uint8 images": (NET, (BYTES, Y), {}),
    "uint8 images, bounds": (NET, (BYTES, Y), {"bounds": (0, 255)}),
    "float images 0 to 255, bounds": (NET, (X * 255, Y), {"bounds": (0, 255)}),
    "images -1 to 1, bounds": (NET, (2 * X - 1, Y), {"bounds": (-1, 1)}),
    "preprocessing of numbers": (NET, (X, Y), {"preprocessing": (0.5, 0.25)}),
    "preprocessing a channel": (NET, (X, Y), {"preprocessing": ([0.5], torch.tensor([0.25]))}),
    "preprocessing of flat images": (NET, (X.flatten(1), Y), {"preprocessing": (0.5, 0.25)}),
    "channels last": (CONV, (X.permute(0, 2, 3, 1).numpy(), Y), {}),
    "colour, channels last": (Conv(3), (X.expand(COUNT, 3, 4, 4).permute(0, 2, 3, 1).numpy(), Y), {}),
    "grey without a channel": (CONV, (X[:, 0], Y), {}),
    "flat images": (NET, (X.flatten(1), Y), {}),
    "one image": (NET, (X[:1], Y[:1]), {}),
    "uint8 labels": (NET, (X, Y.byte()), {}),
    "int32 labels": (NET, (X, Y.numpy().astype(np.int32)), {}),
    "fewer classes than the model knows": (NET, (X, torch.zeros(COUNT, dtype=torch.int64)), {}),
    "an output with .logits": (Returns(lambda f: SimpleNamespace(logits=f)), (X, Y), {}),
    "a mapping with logits": (Returns(lambda f: {"logits": f, "hidden": f}), (X, Y), {}),
    "a constant model": (Returns(lambda f: 0 * f + torch.tensor([1.0, 0, 0, 0])), (X, Y), {}),
    "an attack by name with fields": (NET, (X, Y), {"attacks": ["superdeepfool:steps=5"]}),
    "samples": (NET, (X, Y), {"samples": 3}),
    "a trained model by name": ("digits_mlp", None, {"samples": 3}),
    "its data by name": ("digits_mlp", "digits", {"samples": 3}),
    "a model and a data set by name": (Net(64, 10), "digits", {"samples": 3}),
}

TAKEN |= {
    "a mapping": (NET, {"images": X, "labels": Y}, {}),
    "batches of a DataLoader in a list": (NET, list(LOADER), {}),
    "a DataLoader without batches": (NET, DataLoader(TensorDataset(X, Y), batch_size=None), {}),
    "preprocessing as a mapping": (NET, (X, Y), {"preprocessing": {"mean": 0.5, "std": 0.25}}),
    "preprocessing as torchvision's": (NET, (X, Y), {"preprocessing": Normalize((0.5,), (0.25,))}),
    "a model spread over devices": (nn.DataParallel(NET), (X, Y), {}),
    "a path of a model": (Path("checkpoints/digits_mlp"), None, {"samples": 3}),
    "a data set in capitals": (Net(64, 10), "DIGITS", {"samples": 3}),
    "a twin by name": ("digits_mlp", None, {"samples": 3, "twin": "digits_conv"}),
}

REFUSED: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "no data": (NET, None, {}, "expected data as .* found nothing"),
    "images alone": (NET, X, {}, "images alone"),
    "a number as data": (NET, 5, {}, "found int"),
    "no model": (None, (X, Y), {}, "expected a model .* found nothing"),
    "the class of a model": (Net, (X, Y), {}, r"pass Net\(\.\.\.\)"),
    "an unknown model": ("digits_mpl", (X, Y), {}, "did you mean 'digits_mlp'"),
    "a file of weights": ("net.pt", (X, Y), {}, "a file of weights, not a network.*--weights net.pt"),
    "an unknown data set": (NET, "minst", {}, "did you mean 'mnist'"),
    "no eps": (NET, (X, Y), {"eps": ()}, "at least one eps"),
    "eps that is no number": (NET, (X, Y), {"eps": "a lot"}, "eps"),
    "eps of pixels 0 to 255": (NET, (X, Y), {"eps": 8, "norm": "linf"}, r"above the data range.*8/255"),
    "negative eps": (NET, (X, Y), {"eps": -0.1}, "greater than or equal to 0"),
    "an unknown norm": (NET, (X, Y), {"norm": "l3"}, "norm"),
    "a misspelt setting": (NET, (X, Y), {"atacks": ()}, "did you mean 'attacks'"),
    "an unknown attack": (NET, (X, Y), {"attacks": "pdg"}, "did you mean 'pgd'"),
    "an unknown device": (NET, (X, Y), {"device": "gpu"}, "device 'gpu' cannot be used here"),
    "a missing device": (NET, (X, Y), {"device": "cuda:77"}, "device 'cuda:77' cannot be used here"),
    "one-hot labels": (NET, (X, nn.functional.one_hot(Y, CLASSES)), {}, r"labels.argmax\(1\)"),
    "labels of shape (n, 1)": (NET, (X, Y[:, None]), {}, r"labels.squeeze\(1\)"),
    "float labels": (NET, (X, Y.float()), {}, "integer labels"),
    "bool labels": (NET, (X, Y > 1), {}, "integer labels"),
    "words as labels": (NET, (X, ["cat"] * COUNT), {}, "expected labels as a tensor or an array of numbers"),
    "labels from 1": (NET, (X, Y + 1), {}, r"expected labels 0 to 3 \(the model has 4 classes\), found"),
    "negative labels": (NET, (X, Y - 5), {}, "integer labels from 0"),
    "labels of a billion": (NET, (X, Y + 10**9), {}, "class ids below 100,000"),
    "too few labels": (NET, (X, Y[:2]), {}, "one label per image"),
    "nothing in it": (NET, (X[:0], Y[:0]), {}, "no images"),
    "an empty data set": (NET, Items([]), {}, "no images"),
    "items without labels": (NET, Items(list(X)), {}, "labels are missing"),
    "items that raise": (NET, Items([(X[0], 1), (X[0, :, :2], 1)]), {}, "cannot be gathered"),
    "float images 0 to 255": (NET, (X * 255, Y), {}, r"expected float images in \[0, 1\].*divide them by 255"),
    "normalised images": (NET, (4 * X - 2, Y), {}, r"expected float images in \[0, 1\]"),
    "int64 images": (NET, (BYTES.long(), Y), {}, "expected uint8 images or floats"),
    "uint8 images of zeros and ones": (NET, ((X > 0.5).byte(), Y), {}, "found only 0 and 1"),
    "images beyond bounds": (NET, (X * 300, Y), {"bounds": (0, 255)}, r"expected images from 0 to 255 \(bounds\)"),
    "bounds of one number": (NET, (X, Y), {"bounds": 255}, "bounds: expected"),
    "preprocessing of one number": (NET, (X, Y), {"preprocessing": 0.5}, r"preprocessing: expected \(mean, std\)"),
    "preprocessing of other channels": (NET, (X, Y), {"preprocessing": ([0.1] * 3, [0.2] * 3)}, "a mean of 1 number"),
    "NaN images": (NET, (X * math.nan, Y), {}, "NaN"),
    "images as text": (NET, ("a", "b"), {}, "expected images as a tensor"),
    "other channels": (Conv(3), (X, Y), {}, r"cannot take images of shape \(1, 4, 4\).*3 channels"),
    "other size": (Net(9), (X, Y), {}, r"cannot take images of shape \(1, 4, 4\)"),
    "logits of shape (n,)": (Returns(lambda f: f[:, 0]), (X, Y), {}, r"expected logits of shape \(images, classes\)"),
    "one logit": (Returns(lambda f: f[:, :1]), (X, Y), {}, r"1 logit per image.*torch.cat"),
    "class ids as outputs": (Returns(lambda f: nn.functional.one_hot(f.argmax(1), CLASSES)), (X, Y), {}, "expected float logits"),
    "one-hot outputs": (Returns(lambda f: nn.functional.one_hot(f.argmax(1), CLASSES).float()), (X, Y), {}, "one-hot rows"),
    "probabilities": (Returns(lambda f: f.softmax(1)), (X, Y), {}, "returns probabilities"),
    "a tuple of outputs": (Returns(lambda f: (f, f)), (X, Y), {}, r"a tuple of 2: pass lambda x: model\(x\)\[0\]"),
    "a mapping of outputs": (Returns(lambda f: {"out": f}), (X, Y), {}, "a dict of 'out'"),
    "NaN logits": (Returns(lambda f: f * math.nan), (X, Y), {}, "NaN or infinity on 6 of 6"),
    "a model that raises": (Returns(raises(KeyError("fc"))), (X, Y), {}, "KeyError: 'fc'"),
    "a model that raises in many lines": (Returns(raises(RuntimeError("\n\x1b[31mbad\nworse"))), (X, Y), {}, "bad$"),
    "a function of two arguments": (lambda x, y: x, (X, Y), {}, "TypeError: .*missing 1 required"),
    "weights on meta": (Net().to("meta"), (X, Y), {}, "'meta'"),
    "a data set of other classes": (Net(64, 5), "digits", {"samples": 3}, "expected logits of 10 classes, the model returned 5"),
    "a regression": (NET, "square_wave", {}, "is a regression"),
    "images and labels apart": (NET, X, {"recipe": Y}, r"found Tensor; images and labels go together: evaluate\(model, \("),
    "a recipe and a setting": (NET, (X, Y), {"recipe": {"eps": 0.1}, "norm": "l2"}, "a recipe and eps, .*norm.* beside it"),
    "a mapping of other keys": (NET, {"a": X, "b": Y}, {}, "under keys such as 'image' and 'label', found the keys a, b"),
    "a table of pandas": (NET, pd.DataFrame({"a": [1]}), {}, "cannot be gathered: KeyError"),
    "a data set without a length": (NET, Endless(), {}, "cannot be gathered: TypeError: .*no len"),
    "one image and its label": (NET, (X[0], Y[0]), {}, r"of one image, pass images\[None\] and \[label\]"),
    "one image and its label as a number": (NET, (X[0], 1), {}, r"pass images\[None\] and \[label\]"),
    "a twin that is none": (NET, (X, Y), {"twin": 3}, "expected a model .* found int"),
    "adversarial images in another file": (NET, (X, Y), {"adversarials": "a.pt"}, "ends in .npz, found 'a.pt'"),
    "a model that has no eval mode": (NoEval(), (X, Y), {}, "cannot be switched to eval mode: NotImplementedError: no eval$"),
    "weights of inference mode": (BLIND, (X, Y), {}, "made in torch.inference_mode"),
    "eps in one text": (NET, (X, Y), {"eps": "0.1, 0.2"}, "expected a number or a fraction such as 36/255, found '0.1, 0.2'"),
    "too many samples": (NET, (X, Y), {"samples": 7}, "1 to 6 samples"),
}


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)


@pytest.mark.parametrize(("model", "data", "more"), TAKEN.values(), ids=TAKEN)
def test_a_natural_first_call_gives_a_table(model: Any, data: Any, more: dict[str, Any]) -> None:
    done = evaluate(model, data, **({"eps": 0.1} | FAST | more))
    summary = verdicts.summary(done)
    assert len(summary) and 0 <= summary["robust"].iloc[0] <= summary["clean"].iloc[0] <= 1
    assert done.about.samples == more.get("samples", done.table["index"].nunique())


@pytest.mark.parametrize(("model", "data", "more", "line"), REFUSED.values(), ids=REFUSED)
def test_a_call_that_cannot_be_taken_is_refused_in_one_line(model: Any, data: Any, more: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line) as refused:
        evaluate(model, data, **({"eps": 0.1} | FAST | more))
    assert str(refused.value).isprintable()


def test_radii_are_asked_for_as_they_are_typed():
    done = evaluate(NET, (X, Y), eps="36/255", norm=2, **FAST)
    assert done.robust_accuracy("36/255") == done.robust_accuracy(36 / 255)
    assert done.certified_accuracy("0.1") == done.certified_accuracy(0.1)
    assert len(done.summary("36/255")) == len(done.summary(0.1)) == 1 and done.robust_range("0.1") == done.robust_range(0.1)
    for question in (done.robust_accuracy, done.certified_accuracy, done.summary, done.robust_range):
        with pytest.raises(UserError, match="expected a number or a fraction such as 36/255, found 'much'"):
            question("much")


@pytest.mark.parametrize("verb", [robust_accuracy, attack])
def test_verbs_about_one_eps_refuse_several(verb):
    with pytest.raises(UserError, match="one eps, found 2"):
        verb(NET, X, Y, eps=(0.1, 0.2))


WRONG_CALLS = {
    "a method for attacks": (
        attack,
        (NET, X, Y),
        {"eps": 0.1, "method": "pgd"},
        "unknown argument 'method'; did you mean 'attacks'",
    ),
    "a misspelt argument": (attack, (NET, X, Y), {"eps": 0.1, "nrom": "l2"}, "did you mean 'norm'"),
    "a method for certificates": (certify, (NET, X, Y), {"method": "margin"}, "did you mean 'certificates'"),
    "eps of certify": (certify, (NET, X, Y), {"eps": 0.1}, "certify: unknown argument 'eps'; nearest: .*model"),
    "no labels": (attack, (NET, X), {"eps": 0.1}, "attack: expected y, found none"),
    "labels twice": (attack, (NET, X, Y), {"y": Y}, "argument 'y' is given twice"),
    "eps by position": (attack, (NET, X, Y, 0.1), {}, r"at most 3 arguments by position \(model, x, y\), found 4"),
    "no eps": (robust_accuracy, (NET, X, Y), {}, "robust_accuracy: expected eps, found none"),
    "no model": (evaluate, (), {"eps": 0.1}, "evaluate: expected model, found none"),
    "a misspelt weights": (load_model, ("digits_mlp",), {"wieghts": "a"}, "did you mean 'weights'"),
    "a block of none": (attack, (NET, X, Y), {"eps": 0.1, "block": 0}, "attack: block: .*found '0'"),
    "a block in words": (certify, (NET, X, Y), {"block": "a"}, "certify: block: .*found 'a'"),
    "an unknown effort": (attack, (NET, X, Y), {"eps": 0.1, "effort": "max"}, "attack: effort: .*'quick'.*found 'max'"),
    "a target in words": (attack, (NET, X, Y), {"eps": 0.1, "target": "cat"}, "expected target as a tensor or an array"),
    "no certificates": (certify, (NET, X, Y), {"certificates": ()}, "expected at least one certificate, found none"),
    "a function's radii": (certify, (lambda x: NET(x), X, Y), {}, "margin, liplt, eclipse, crown: no proven"),
    "a backward pass that fails": (
        attack,
        (lambda x: NET(NoBackward.apply(x)), X, Y),  # before the network: a copy of the logits is looked through
        {"eps": 1.0},
        "attack 'superdeepfool' failed: ValueError: no backward",
    ),
    "no gradient": (attack, (blind, X, Y), {"eps": 1.0}, r"no gradient passes .*attacks=\['square'\]"),
    "no name": (load_model, (None,), {}, "expected a name or a path, found nothing"),
    "no folder of reports": (report, ([],), {}, "report: expected folder, found none"),
}


@pytest.mark.parametrize(("verb", "args", "more", "line"), WRONG_CALLS.values(), ids=WRONG_CALLS)
def test_wrong_arguments_are_one_line_too(verb: Any, args: Any, more: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line) as refused:
        verb(*args, **more)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_gradient_mode_around_a_call_makes_a_model_look_robust(mode: Any) -> None:
    truth = evaluate(NET, (X, Y), eps=3.0, **FAST).robust_accuracy(3.0)
    with mode():
        images, labels = X.clone(), Y.clone()
        found = evaluate(NET, (images, labels), eps=3.0, **FAST).robust_accuracy(3.0)
        adversarial = attack(NET, images, labels, eps=3.0)
    assert truth == found == 0
    assert (NET(adversarial).argmax(1) != Y).all()


def test_certify_keeps_what_is_proved_when_its_budget_ends() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES)).eval()
    labels = model(X).argmax(1)
    whole = certify(model, X, labels, certificates="margin")
    assert torch.equal(certify(model, X, labels, certificates=("margin", Endlessly()), budget="1s"), whole)
    assert (certify(model, X, labels, certificates=Endlessly(), budget=0.1) == 0).all()


def test_a_robust_accuracy_that_cannot_be_believed_warns() -> None:
    with pytest.warns(UserWarning, match="may be too high: zero_gradients: .*"):
        assert robust_accuracy(blind, X, Y, eps=0.01, effort="quick", certificates=()) > 0


def test_every_verb_checks_its_arguments() -> None:
    for name in (name for name in robustbench_rkhs.__all__ if name[0].islower()):
        with pytest.raises(UserError, match=f"{name}: "):
            getattr(robustbench_rkhs, name)(*range(9))
