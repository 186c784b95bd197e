"""Containers of a network: wrappers, graph modules, exported programs, ONNX files and hooked weights count as what they contain."""

import os
from pathlib import Path

import pytest
import torch
from heard import messages_into
from torch import fx, nn
from torch.nn.utils import prune, spectral_norm, weight_norm
from torch.optim.swa_utils import AveragedModel

from robustbench_rkhs import UserError, attack, certify, evaluate, load_model
from robustbench_rkhs.identity import key_of
from robustbench_rkhs.zoo.containers import unpacked
from robustbench_rkhs.zoo.models import as_module

X = torch.rand(6, 1, 6, 6, generator=torch.Generator().manual_seed(0))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(4 * 3 * 3, 5)
        self.norm.running_mean = torch.linspace(-0.2, 0.2, 4)
        self.norm.running_var = torch.linspace(0.5, 2.0, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(torch.relu(self.norm(self.conv((x - 0.5) / 0.25))))
        return self.head(x.view(x.shape[0], -1))


def small() -> nn.Module:
    torch.manual_seed(1)
    return Small().eval()


NET = small()
Y = NET(X).argmax(1)
RADII = certify(NET, X, Y)


def exported(free: bool) -> torch.export.ExportedProgram:
    return torch.export.export(NET, (X[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},) if free else None)


class Spread(nn.Module):
    """Holds a container inside."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


SAME = {
    "DataParallel": lambda: nn.DataParallel(NET),
    "an average": lambda: AveragedModel(NET),
    "an average spread over devices": lambda: nn.DataParallel(AveragedModel(NET)),
    "compiled": lambda: torch.compile(NET, backend="eager"),
    "a graph module": lambda: fx.symbolic_trace(NET),
    "a container inside": lambda: Spread(nn.DataParallel(NET)).eval(),
    "a compiled part": lambda: Spread(torch.compile(NET, backend="eager")).eval(),
}


@pytest.mark.parametrize("name", SAME)
def test_a_container_is_certified_and_identified_as_the_network_inside(name: str) -> None:
    container = SAME[name]().eval()
    assert torch.equal(certify(container, X, Y), RADII)
    assert key_of(as_module(container)) == key_of(NET)
    assert torch.equal(attack(container, X, Y, eps=0.5, attacks=("fab",)), attack(NET, X, Y, eps=0.5, attacks=("fab",)))


class Negated(nn.DataParallel):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -super().forward(x)


class ModelEma(nn.Module):
    """Of a library's name, but of its own forward."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -self.module(x)


def with_hook(model: nn.Module) -> nn.Module:
    model.register_forward_hook(lambda module, given, out: -out)
    return model


OTHER = {
    "its own forward": lambda: Negated(NET),
    "an average with its own forward": lambda: ModelEma(NET),
    "a hook": lambda: with_hook(nn.DataParallel(NET)),
    "a hook on an average": lambda: with_hook(AveragedModel(NET)),
    "a hook on a compiled model": lambda: with_hook(torch.compile(NET, backend="eager")),
    "a replaced forward": lambda: replaced(nn.DataParallel(NET)),
    "inside": lambda: Spread(Negated(NET)),
}


def replaced(model: nn.Module) -> nn.Module:
    model.forward = lambda x: -NET(x)  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize("name", OTHER)
def test_a_container_that_computes_something_besides_is_not_set_aside(name: str) -> None:
    """It would be evaluated, and certified, as another function than it is."""
    model = OTHER[name]().eval()
    with torch.no_grad():
        assert torch.equal(as_module(model)(X), -NET(X))
    assert key_of(as_module(model)) != key_of(NET)
    y = (-NET(X)).argmax(1)
    try:
        radii = certify(model, X, y)
    except UserError:
        return
    closest = attack(as_module(model), X, y, attacks=("ddn",))
    assert (radii <= (closest - X).flatten(1).norm(dim=1) * (1 + 1e-5)).all()


def test_a_distributed_model_counts_as_its_network() -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        assert torch.equal(certify(nn.parallel.DistributedDataParallel(small()), X, Y), RADII)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("module", [True, False])
def test_an_exported_program_takes_any_number_of_images_and_is_certified(free: bool, module: bool) -> None:
    program = exported(free)
    inside = as_module(program.module() if module else program)
    for count in (1, 5):
        torch.testing.assert_close(inside(X[:count]), NET(X[:count]))
    torch.testing.assert_close(certify(inside, X, Y), RADII, rtol=1e-6, atol=0)
    assert key_of(inside) == key_of(as_module(program))
    changed = small()
    changed.head.bias.data[0] += 1
    assert key_of(as_module(torch.export.export(changed, (X[:2],)))) != key_of(inside)


def test_a_program_that_mixes_its_images_is_refused() -> None:
    class Mixing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1) - x.mean()

    with pytest.raises(UserError, match=r"mixes images.*batch size, 2, is part of it"):
        as_module(torch.export.export(Mixing(), (X[:2],)))


def hooked() -> nn.Sequential:
    torch.manual_seed(2)
    last = nn.Linear(12, 5)
    prune.l1_unstructured(last, "weight", amount=0.3)
    prune.random_unstructured(last, "weight", amount=0.2)
    prune.random_unstructured(last, "bias", amount=1)
    both = weight_norm(nn.Linear(10, 12))
    prune.l1_unstructured(both, "weight_v", amount=0.3)
    layers = [nn.Flatten(), spectral_norm(nn.Linear(36, 10)), nn.ReLU(), both, nn.ReLU(), last]
    model = nn.Sequential(*layers)
    model(X)  # in training mode, where spectral_norm iterates
    return model.eval()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weights_set_by_hooks_are_those_of_eval_mode_to_the_last_bit() -> None:
    model = hooked()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain, names = unpacked(model)
    assert torch.equal(plain(X), model(X)) and names == [
        "SpectralNorm",
        "WeightNorm",
        "L1Unstructured",
        "PruningContainer",
        "RandomUnstructured",
    ]
    assert sorted(plain.state_dict()) == sorted(f"{number}.{name}" for number in (1, 3, 5) for name in ("weight", "bias"))
    written = nn.Sequential(nn.Flatten(), nn.Linear(36, 10), nn.ReLU(), nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 5)).eval()
    written.load_state_dict(plain.state_dict())
    y = model(X).argmax(1)
    assert torch.equal(certify(model, X, y), certify(written, X, y)) and key_of(plain) == key_of(written)
    assert (plain[5].weight == 0).float().mean() > 0.4
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())  # the model is left as it was


def test_what_was_set_aside_is_said_and_the_verdicts_are_those_of_the_network() -> None:
    said: list[str] = []
    fast = {"eps": 0.1, "effort": "quick", "diagnostics": False, "certificates": ("margin",)}
    found = evaluate(nn.DataParallel(torch.compile(NET, backend="eager")), (X, Y), on_event=messages_into(said), **fast)
    assert "evaluated and certified: the network inside DataParallel, torch.compile" in said
    wanted = evaluate(NET, (X, Y), **fast)
    assert found.table.radius.tolist() == wanted.table.radius.tolist() and found.about.key == wanted.about.key


def test_a_script_is_attacked_and_refused_by_certificates_with_the_way_out() -> None:
    script = torch.jit.trace(NET, X)
    with pytest.raises(UserError, match=r"TorchScript, whose code no rule reads; certify the nn\.Module it was made of"):
        certify(script, X, Y)
    assert attack(script, X, Y, eps=0.5, attacks=("fab",)).shape == X.shape


@pytest.mark.parametrize(
    ("name", "line"), [("absent.onnx", "no ONNX file"), ("net.pt2", "torch.export.load it in a function of yours")]
)
def test_a_file_that_is_not_read_is_one_line(name: str, line: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx2torch", reason="the extra [onnx] is not installed")
    with pytest.raises(UserError, match=line):
        load_model(str(tmp_path / name))


@pytest.mark.parametrize("free", [True, False])
def test_an_onnx_file_is_certified_as_its_network(free: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnx2torch", reason="the extra [onnx] is not installed")
    path, said = tmp_path / "net.onnx", list[str]()
    axes = {"dynamic_axes": {"x": {0: "batch"}}} if free else {}
    torch.onnx.export(NET, (X[:1],), str(path), input_names=["x"], dynamo=False, **axes)
    named = load_model(str(path), on_event=messages_into(said))
    torch.testing.assert_close(named.model(X), NET(X))
    torch.testing.assert_close(certify(named, X, Y), RADII, rtol=1e-4, atol=0)
    assert any("exported for batches of 1" in line for line in said) is not free
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="can't be read by onnx2torch"):
        load_model(str(path))
    with pytest.raises(UserError, match="holds its own weights"):
        load_model(str(path), weights="more.pth")


HEAVY = {"Tile": [1, 1, 60_000, 60_000], "ConstantOfShape": [100_000, 1_000_000], "Expand": [1, 10_000_000, 6, 6]}


@pytest.mark.parametrize("kind", HEAVY)
def test_an_onnx_file_that_asks_for_memory_is_refused_before_it_is_taken(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx2torch", reason="the extra [onnx] is not installed")
    with pytest.raises(UserError, match=r"heavy\.onnx: a value of shape .* is too large"):
        load_model(str(onnx_file(tmp_path / "heavy.onnx", "s" if kind == "ConstantOfShape" else "x", kind, HEAVY[kind])))


@pytest.mark.parametrize("place", ["node", "value"])
def test_no_name_of_an_onnx_file_is_run_as_code(place: str, tmp_path: Path) -> None:
    """torch.fx writes the names of layers into the Python code of a graph's forward, unescaped."""
    pytest.importorskip("onnx2torch", reason="the extra [onnx] is not installed")
    mark = tmp_path / "mark"
    code = f'a", 0) or getattr(__import__("os"), "mkdir")(chr(47)+chr(47).join({mark.parts[1:]!r})) or getattr(self, "b'
    names = {"name": code} if place == "node" else {"between": code}
    assert load_model(str(onnx_file(tmp_path / "net.onnx", "x", "Flatten", None, **names))).model(X).shape == (6, 36)
    assert not mark.exists()


@pytest.mark.parametrize(("inputs", "kind", "line"), [(0, 1, "takes 0 inputs"), (2, 1, "takes 2 inputs"), (1, 7, "floating-point")])
def test_an_onnx_file_that_takes_no_images_is_one_line(inputs: int, kind: int, line: str, tmp_path: Path) -> None:
    pytest.importorskip("onnx2torch", reason="the extra [onnx] is not installed")
    with pytest.raises(UserError, match=line):
        load_model(str(onnx_file(tmp_path / "net.onnx", "x", "Flatten", None, inputs=inputs, kind=kind)))


def onnx_file(
    path: Path,
    source: str,
    operation: str,
    sizes: list[int] | None,
    name: str = "n",
    between: str = "y",
    inputs: int = 1,
    kind: int = 1,
) -> Path:
    """A file of one operation on images (or on `sizes`, its last input), and the identity."""
    from onnx import TensorProto, helper

    held = [] if sizes is None else [helper.make_tensor("s", TensorProto.INT64, [len(sizes)], sizes)]
    asked = [helper.make_tensor_value_info(one, kind, ["N", 1, 6, 6]) for one in ("x", "z")[:inputs]]
    taken = [source] if source == "s" or sizes is None else [source, "s"]
    nodes = [
        helper.make_node(operation, taken, [between], name=name),
        helper.make_node("Identity", [between], ["out"], name="last"),
    ]
    graph = helper.make_graph(nodes, "g", asked, [helper.make_tensor_value_info("out", 1, None)], held)
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]).SerializeToString())
    return path


@pytest.mark.parametrize("method", ["fab", "pgd", "apgd", "ddn", "square", "fmn", "alma"])
def test_no_attack_asks_about_an_empty_batch(method: str) -> None:
    """Which `x.view(x.shape[0], -1)` refuses."""
    assert attack(NET, X, Y, eps=0.5, attacks=(method,)).shape == X.shape


FOREIGN = Path(os.environ.get("RKHS_FOREIGN", "../shared/foreign"))


@pytest.mark.parametrize("name", ["colt_mnist_0.1", "resnet_2b", "sri_resnet_a", "mnist-net_256x2"])
def test_foreign_onnx_files_give_what_onnx_s_own_evaluator_gives(name: str) -> None:
    pytest.importorskip("onnx2torch", reason="the extra [onnx] is not installed")
    if not (path := FOREIGN / f"{name}.onnx").is_file():
        pytest.skip(f"no foreign network {path}: set RKHS_FOREIGN")
    from onnx.reference import ReferenceEvaluator

    named = load_model(str(path))
    evaluator = ReferenceEvaluator(str(path))
    shape = (3, 32, 32) if "resnet" in name else (1, 28, 28)
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    asked = (1, 784, 1) if name == "mnist-net_256x2" else (1, *shape)
    wanted = [torch.from_numpy(evaluator.run(None, {evaluator.input_names[0]: one.reshape(asked).numpy()})[0]) for one in x]
    torch.testing.assert_close(named.model(x), torch.cat(wanted), rtol=1e-4, atol=1e-4)
