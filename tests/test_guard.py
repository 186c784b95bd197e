"""The guard at the door: what a stranger's file may cost is checked before it is spent, and all that is wrong is one line."""

import io
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import textwrap
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from robustbench_rkhs.networks import MLP, LipschitzResNet
from robustbench_rkhs.networks.skeleton import skeleton
from robustbench_rkhs.nodes.documents import json_of, read_text, yaml_of
from robustbench_rkhs.nodes.guard import guarded
from robustbench_rkhs.nodes.limits import STRANGERS, Limits
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.one_of import names_of
from robustbench_rkhs.nodes.parsing import parse
from robustbench_rkhs.runtime.children import BEGIN, messages
from robustbench_rkhs.runtime.digests import weights_digest
from robustbench_rkhs.runtime.weights_file import weights_file
from robustbench_rkhs.submission.gate import submit
from robustbench_rkhs.training import checkpoint
from robustbench_rkhs.verdicts.adversarials import TYPES, read_arrays

ALIASES = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 10)}]\n" for before, after in zip("abcdefg", "bcdefgh", strict=True)
)
YAMLS = {
    "an alias bomb": (ALIASES, "more than 50,000 values"),
    "an alias of itself": ("a: &a [*a]", "alias 'a'"),
    "an unknown alias": ("a: *b", "alias"),
    "a merge bomb": ("a: &a {x: 1}\nb: &b\n  <<: [" + ", ".join(["*a"] * 60_000) + "]", "more than 50,000 values"),
    "depth": ("[" * 100 + "]" * 100, "more than 64 deep"),
    "depth of blocks": ("".join(" " * n + "a:\n" for n in range(100)), "more than 64 deep"),
    "many values": ("[" + "1," * 60_000 + "]", "more than 50,000 values"),
    "a number in base 60": ("a: " + ":".join(["59"] * 30_000), "expected at most 10,000"),
    "a tagged number in base 60": ("a: !!int '" + ":".join(["59"] * 30_000) + "'", "expected at most 10,000"),
    "a long number": ("a: " + "9" * 9_000, "readable YAML"),
    "a tag of Python": ("a: !!python/object/apply:os.system ['true']", "readable YAML"),
    "a date that is none": ("a: 2020-99-99", "readable YAML"),
    "a list as a key": ("? [1, 2]\n: 3", "readable YAML"),
    "control characters": ("a: \x07", "readable YAML"),
    "two documents": ("a: 1\n---\nb: 2", "readable YAML"),
}


@pytest.mark.parametrize("name", YAMLS)
def test_yaml_is_counted_before_it_is_made(name):
    text, line = YAMLS[name]
    tracemalloc.start()
    with pytest.raises(UserError) as refused:
        yaml_of(text, "recipe.yaml")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    said = str(refused.value)
    assert said.startswith("recipe.yaml") and line in said and "\n" not in said and peak < 100e6


def test_ordinary_yaml_is_what_pyyaml_makes_of_it():
    for path in sorted((Path(__file__).parent.parent / "models").rglob("*.yaml")):
        assert yaml_of(path.read_text(), str(path)) == yaml.safe_load(path.read_text())
    text = "base: &base {lr: 0.1}\none: {<<: *base, epochs: 3}\ntext: '" + "x" * 20_000 + "'"
    assert yaml_of(text, "here") == yaml.safe_load(text)


JSONS = {
    "depth": ("[" * 100 + "]" * 100, "64 deep"),
    "more depth": ("[" * 100_000 + "]" * 100_000, "recursion|64 deep"),
    "many values": ("[" + "1," * 60_000 + "1]", "more than 50,000 values"),
    "NaN": ('{"a": NaN}', "NaN is not a JSON number"),
    "half a character": (r'{"a": "\ud800"}', "surrogate"),
    "a long number": ('{"a": ' + "9" * 9_000 + "}", "JSON"),
    "cut": ('{"a": ', "JSON"),
    "size": (" " * (2 << 20), "characters"),
}


@pytest.mark.parametrize("name", JSONS)
def test_json_is_bounded(name):
    text, line = JSONS[name]
    with pytest.raises(UserError, match=line) as refused:
        json_of(text, "config.json")
    assert "\n" not in str(refused.value)


def test_text_is_read_no_further_than_it_may_go(tmp_path):
    huge = tmp_path / "huge.yaml"
    with huge.open("wb") as handle:
        handle.truncate(1 << 40)  # a sparse file
    for path, line in ((huge, "expected at most"), (Path("/dev/zero"), "more than"), (tmp_path, "cannot be read")):
        with pytest.raises(UserError, match=line):
            read_text(path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff")
    with pytest.raises(UserError, match="cannot be read"):
        read_text(tmp_path / "latin.yaml")


def tensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


ROW = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
WEIGHTS = {
    "nothing": (b"", "truncated"),
    "a length beyond the file": (tensors({}, length=2**60), "truncated"),
    "a long header": (tensors(b"{" + b" " * (9 << 20) + b"}"), "its header has"),
    "a header that is no mapping": (tensors([1]), "not a mapping"),
    "no JSON": (tensors(b"{{{"), "not JSON"),
    "an unknown type": (tensors({"a": ROW | {"dtype": "F4"}}, b"0" * 8), "no valid entry"),
    "a negative side": (tensors({"a": ROW | {"shape": [-2]}}, b"0" * 8), "no valid entry"),
    "a side of text": (tensors({"a": ROW | {"shape": ["2"]}}, b"0" * 8), "no valid entry"),
    "offsets backwards": (tensors({"a": ROW | {"data_offsets": [8, 0]}}, b"0" * 8), "has -8 bytes"),
    "a shape beyond its bytes": (tensors({"a": ROW | {"shape": [10**9, 10**9]}}, b"0" * 8), "has 8 bytes"),
    "two tensors in one place": (tensors({"a": ROW, "b": ROW}, b"0" * 8), "does not begin where"),
    "a gap": (tensors({"a": ROW | {"data_offsets": [8, 16]}}, b"0" * 16), "does not begin where"),
    "bytes beyond": (tensors({"a": ROW}, b"0" * 80), "its header describes"),
    "too few bytes": (tensors({"a": ROW}, b"0" * 4), "its header describes"),
    "a row that is a list": (tensors({"a": [1]}), "no valid entry"),
    "thousands of tensors": (
        tensors({str(n): {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in range(20_001)}),
        "20,001 tensors",
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_headers_of_weights_are_checked_before_weights_are_read(tmp_path, name):
    stored, line = WEIGHTS[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(stored)
    with pytest.raises(UserError, match=line) as refused:
        weights_file(path)
    assert "\n" not in str(refused.value)


def test_a_sound_file_of_weights_has_the_digest_of_its_tensors(tmp_path):
    state = {"b.w": torch.rand(3, 4), "a": torch.arange(5), "c": torch.rand(2).half(), "d": torch.zeros(0), "e": torch.tensor(True)}
    checkpoint.write_safetensors(tmp_path / "w.safetensors", state)
    found = weights_file(tmp_path / "w.safetensors")
    assert found.digest() == weights_digest(state) and found.numbers == 12 + 5 + 2 + 0 + 1
    found.must_fit(state)
    for wrong in ({**state, "f": torch.zeros(1)}, {**state, "a": torch.zeros(5)}, {**state, "b.w": torch.zeros(4, 3)}):
        with pytest.raises(UserError):
            found.must_fit(wrong)
    checkpoint.write_safetensors(tmp_path / "n.safetensors", {"a": torch.tensor([1.0, torch.nan])})
    with pytest.raises(UserError, match="NaN"):
        weights_file(tmp_path / "n.safetensors").digest()


def every_network():
    from robustbench_rkhs.networks import Network

    for name, kind in names_of(Network).items():
        families = kind.model_fields["family"].annotation.__args__ if "family" in kind.model_fields else (None,)
        for family in families:
            yield pytest.param(kind(**({} if family is None else {"family": family})), id=f"{name} {family or ''}")


@pytest.mark.parametrize("network", every_network())
def test_every_network_can_be_made_without_memory(network):
    """Its state on the device `meta` has the names, shapes and types of the real one."""
    for shape in ((1, 16, 16), (3, 32, 32), (1, 28, 28), (20, 100)):
        try:
            real = network.build(shape, 10).state_dict()
        except UserError:
            continue
        found = skeleton(network, shape, 10, len(real), sum(tensor.numel() for tensor in real.values()))
        assert all(tensor.is_meta for tensor in found.values())
        assert {n: (t.shape, t.dtype) for n, t in found.items()} == {n: (t.shape, t.dtype) for n, t in real.items()}
        return
    raise AssertionError("no shape fits")


@pytest.mark.parametrize(
    "network", [MLP(hidden=(1_000_000, 1_000_000)), LipschitzResNet(blocks=1_000_000), MLP(hidden=(1,) * 5000)], ids=str
)
def test_a_network_larger_than_its_weights_is_refused_while_it_is_made(network):
    before, started = torch.get_rng_state(), time.process_time()
    with pytest.raises(UserError, match=r"asks for more|more layers"):
        skeleton(network, (3, 32, 32), 10, tensors=6, numbers=100_000)
    assert time.process_time() - started < 5 and torch.equal(before, torch.get_rng_state())
    assert MLP(hidden=(4,)).build((1, 2, 2), 2)  # no trace is left behind


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A sound bundle."""
    folder = tmp_path_factory.mktemp("guard") / "theirs"
    shipped = Path(__file__).parent.parent / "checkpoints" / "digits_mlp"
    shutil.copytree(shipped, folder, ignore=lambda _, names: {*names} - {"config.json", "recipe.yaml", "model.safetensors"})
    return folder


def unsealed(folder, **changes):
    """config.json of the older format, so that what is altered is not refused for its seal."""
    path = folder / "config.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if key not in ("seal", "seals", "logits")}
    path.write_text(json.dumps({**config, "format": 1, **changes}))


def recipe(**changes):
    def alter(folder):
        path = folder / "recipe.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))
        unsealed(folder)

    return alter


def text(name, words):
    def alter(folder):
        (folder / name).write_text(words)
        if name != "config.json":
            unsealed(folder)

    return alter


def sparse(folder):
    with (folder / "model.safetensors").open("r+b") as handle:
        handle.truncate((1 << 30) - 1)


def giant(folder):
    with (folder / "model.safetensors").open("r+b") as handle:
        handle.truncate(1 << 40)


BUNDLES = {
    "an alias bomb": (text("recipe.yaml", ALIASES), "more than 50,000 values"),
    "deep JSON": (text("config.json", "[" * 100_000), "config.json"),
    "a list as the configuration": (text("config.json", "[1]"), "not a mapping"),
    "weights of 275 GB": (recipe(network={"name": "mlp", "hidden": [260_000, 260_000]}), "asks for more"),
    "a million blocks": (recipe(network={"name": "lipschitz_resnet", "blocks": 1_000_000}), "asks for more|more layers|images of"),
    "another width": (recipe(network={"name": "mlp", "hidden": [7]}), "tensor|shape"),
    "a width of 0": (recipe(network={"name": "mlp", "hidden": [0]}), "greater than or equal to 1"),
    "a seed of 90 bits": (recipe(seed=2**90), "seed"),
    "images of its own": (recipe(data={"name": "npz", "path": "/etc/passwd"}), "one of the known sets"),
    "a folder of its own": (recipe(data={"name": "folder", "path": "/"}), "one of the known sets"),
    "code": (recipe(network={"name": "os:system"}), "os:system"),
    "a path as a family": (recipe(data={"name": "protein", "family": "../../x"}), "family"),
    "a sparse file": (sparse, "its header describes"),
    "a giant": (giant, "larger than"),
    "a shape of millions": (lambda folder: unsealed(folder, shape=[4096, 4096, 4096]), "asks for more|tensor|shape"),
    "a shape of text": (lambda folder: unsealed(folder, shape="x"), "config.json"),
    "an infinite class": (lambda folder: unsealed(folder, classes=1e300), "config.json|class"),
}


def refused(folder, tmp_path):
    from robustbench_rkhs.evaluation.recipe import EvalRecipe

    with pytest.raises(UserError) as found:
        list(submit(folder, EvalRecipe(eps=(0.1,)), sample=5, device="cpu", out=tmp_path / "out"))
    assert "\n" not in str(found.value) and not (tmp_path / "out").exists()
    return str(found.value)


@pytest.mark.parametrize("name", BUNDLES)
def test_a_bundle_is_refused_in_one_line(sound, tmp_path, name):
    import re

    alter, line = BUNDLES[name]
    shutil.copytree(sound, tmp_path / "theirs")
    alter(tmp_path / "theirs")
    said = refused(tmp_path / "theirs", tmp_path)
    assert re.search(line, said), said


def test_a_link_is_no_bundle(sound, tmp_path):
    (tmp_path / "link").symlink_to(sound)
    assert "is a link" in refused(tmp_path / "link", tmp_path)


def test_refusing_costs_little_more_than_refusing_an_empty_folder(sound, tmp_path):
    """In a process of its own, as memory is measured by its largest extent."""
    (tmp_path / "empty").mkdir()
    for name in ("an alias bomb", "weights of 275 GB", "a million blocks", "deep JSON", "a sparse file"):
        shutil.copytree(sound, tmp_path / name.replace(" ", "_"))
        BUNDLES[name][0](tmp_path / name.replace(" ", "_"))
    script = """
        import json, resource, sys, time
        from pathlib import Path
        from robustbench_rkhs.evaluation.recipe import EvalRecipe
        from robustbench_rkhs.nodes.node import UserError
        from robustbench_rkhs.submission.gate import submit
        costs = []
        for folder in sys.argv[1:]:
            started = time.process_time()
            try:
                list(submit(Path(folder), EvalRecipe(eps=(0.1,)), sample=5, device="cpu", out=Path(folder) / ".." / "out"))
            except UserError:
                used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                costs.append([folder, used, time.process_time() - started])
        print(json.dumps(costs))
    """
    folders = [str(tmp_path / "empty"), *(str(one) for one in sorted(tmp_path.iterdir()) if one.name != "empty")]
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), *folders], capture_output=True, text=True, check=True)
    costs = json.loads(done.stdout)
    assert len(costs) == len(folders)
    (_, memory, seconds), *others = costs
    for name, used, took in others:
        assert used - memory < 300 and took - seconds < 5, (name, used - memory, took - seconds)


def archive(path, compress=zipfile.ZIP_STORED, **members):
    with zipfile.ZipFile(path, "w", compress) as found:
        for name in TYPES:
            found.writestr(f"{name}.npy", members.get(name, npy(np.zeros(3, "<i8"))))
    return path


def npy(array=None, shape=None, dtype="<f4", data=b""):
    if array is not None:
        held = io.BytesIO()
        np.save(held, array)
        return held.getvalue()
    held = io.BytesIO()
    np.lib.format.write_array_header_1_0(held, {"descr": dtype, "fortran_order": False, "shape": shape})
    return held.getvalue() + data


@pytest.mark.parametrize(
    "members, line",
    [
        ({"images": npy(shape=(10**12,))}, "has 0 bytes"),
        ({"images": npy(shape=(-1, -1), data=b"0" * 4)}, "has 4 bytes"),
        ({"images": npy(shape=(2,) * 20)}, "has 0 bytes"),
        (
            {"index": npy(np.zeros(3, "<i8")), "images": npy(np.zeros((3, 4), "<f4")), "method": npy(shape=(10**12,), dtype="<U0")},
            "",
        ),
        ({"index": npy(np.array([None]))}, "holds object"),
        ({"images": npy(np.array([[np.nan]], "<f4"))}, ""),
    ],
    ids=["a million millions", "negative", "many sides", "empty texts", "objects", "NaN"],
)
def test_arrays_are_looked_at_before_they_are_read(tmp_path, members, line):
    with pytest.raises(UserError, match=line) as found:
        read_arrays(archive(tmp_path / "x.npz", **members), TYPES, "a file of adversarial images", STRANGERS)
    assert "\n" not in str(found.value)


def test_a_compressed_archive_is_refused_unread(tmp_path):
    bomb = archive(tmp_path / "bomb.npz", zipfile.ZIP_DEFLATED, images=npy(shape=(25_000_000,), data=bytes(100_000_000)))
    assert bomb.stat().st_size < 1e6
    tracemalloc.start()
    with pytest.raises(UserError, match="compressed"):
        read_arrays(bomb, TYPES, "a file of adversarial images")
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_limits_are_read_as_they_are_typed():
    found = parse(Limits, {"weights": "4GiB", "memory": "300 mb", "seconds": "2h", "text": 5}, "--limits")
    assert (found.weights, found.memory, found.seconds, found.text) == (4 << 30, 300 << 20, 7200, 5)
    for wrong in ({"weights": "much"}, {"weights": 0}, {"weigths": 1}, {"seconds": -1}, {"threads": 0}, {"memory": "1e3"}):
        with pytest.raises(UserError):
            parse(Limits, wrong, "--limits")


CHILD = """
    import json, os, sys, time
    from robustbench_rkhs.nodes.limits import Limits
    from robustbench_rkhs.runtime.children import confine, end_with
    job = json.loads(sys.stdin.buffer.read())
    end_with(job["parent"])
    confine(Limits(**job["limits"]))
    print(json.dumps({"pid": os.getpid()}), flush=True)
    if job["what"] == "memory":
        held = bytearray(4 << 30)
    if job["what"] == "spins":
        while True: pass
    if job["what"] == "sleeps":
        time.sleep(60)
    if job["what"] == "raises":
        raise RuntimeError("of its own")
    print(json.dumps({"done": True}), flush=True)
"""


def children(tmp_path, monkeypatch, what, **limits):
    (tmp_path / "child_of_a_test.py").write_text(textwrap.dedent(CHILD))
    monkeypatch.syspath_prepend(str(tmp_path))
    held = Limits(**limits)
    return messages("child_of_a_test", {"what": what, "limits": held.model_dump()}, held)


def test_a_process_of_its_own_ends_at_its_limits(tmp_path, monkeypatch):
    assert [*children(tmp_path, monkeypatch, "nothing")][1:] == [{"done": True}]
    for what, line, limits in (
        ("memory", "needs more memory than 2 GiB", {"memory": 2 << 30}),
        ("spins", "longer than 1 s on 1 thread ", {"seconds": 1, "threads": 1}),
        ("sleeps", "longer than 2 s", {"seconds": 2}),
        ("raises", "RuntimeError: of its own", {}),
    ):
        with pytest.raises(UserError, match=line) as found:
            list(children(tmp_path, monkeypatch, what, **limits))
        assert "\n" not in str(found.value)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def gone(pid):
    for _ in range(100):
        if not alive(pid):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_process_of_its_own_ends_with_its_parent(tmp_path, monkeypatch):
    running = children(tmp_path, monkeypatch, "sleeps")
    pid = next(running)["pid"]
    running.close()
    assert gone(pid)
    script = f"""
        import sys
        sys.path[:0] = [{str(tmp_path)!r}]
        from robustbench_rkhs.nodes.limits import Limits
        from robustbench_rkhs.runtime.children import messages
        held = Limits()
        for one in messages("child_of_a_test", {{"what": "sleeps", "limits": held.model_dump()}}, held):
            print(one["pid"], flush=True)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    assert alive(pid)
    os.kill(parent.pid, 9)
    parent.wait()
    assert gone(pid)


def test_whatever_is_raised_at_the_door_is_one_line():
    for error in (KeyError("a\nb"), RecursionError("deep"), MemoryError(), struct.error("x"), OSError(5, "x", "a\nb")):
        with pytest.raises(UserError) as refused, guarded("theirs.npz"):
            raise error
        assert str(refused.value).startswith("theirs.npz cannot be read: ") and "\n" not in str(refused.value)
    with pytest.raises(UserError, match=r"^as it is$"), guarded("theirs.npz"):
        raise UserError("as it is")
    with pytest.raises(KeyboardInterrupt), guarded("theirs.npz"):
        raise KeyboardInterrupt


def mutated(record, draw):
    """The same with one value replaced or left out, anywhere in it."""
    places = [[]]
    for place in places:
        value = record
        for key in place:
            value = value[key]
        keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        places += [[*place, key] for key in keys]
    *within, last = draw.choice(places[1:])
    value = record
    for key in within:
        value = value[key]
    odd = [None, [], {}, -1, 0, 1e308, True, "", "x", [None], {"a": 1}, 2**70, "../..", [[[]]], "os:system", {"name": "npz"}]
    if draw.random() < 0.2 and isinstance(value, dict):
        del value[last]
    else:
        value[last] = draw.choice(odd)
    return record


@pytest.mark.parametrize("seed", range(3))
def test_mutated_bundles_are_loaded_or_refused_in_one_line(sound, tmp_path, seed):
    """Forty of each file, one value of it replaced: never another exception, never more than a moment."""
    draw = random.Random(seed)
    folder = tmp_path / "theirs"
    shutil.copytree(sound, folder)
    unsealed(folder)
    plain = {path.name: path.read_bytes() for path in folder.iterdir()}
    length = int.from_bytes(plain["model.safetensors"][:8], "little")
    for number in range(40):
        for name, stored in plain.items():
            (folder / name).write_bytes(stored)
        if number % 3 == 0:
            (folder / "config.json").write_text(json.dumps(mutated(json.loads(plain["config.json"]), draw)))
        elif number % 3 == 1:
            (folder / "recipe.yaml").write_text(yaml.safe_dump(mutated(yaml.safe_load(plain["recipe.yaml"]), draw)))
        else:
            header = mutated(json.loads(plain["model.safetensors"][8 : 8 + length]), draw)
            (folder / "model.safetensors").write_bytes(tensors(header, plain["model.safetensors"][8 + length :]))
        try:
            checkpoint.load(folder, limits=STRANGERS)
        except UserError as error:
            assert "\n" not in str(error)


@pytest.mark.skipif(sys.platform != "linux", reason="asked of the kernel on Linux")
def test_it_ends_with_its_parent_also_while_it_still_imports(tmp_path):
    (tmp_path / "slow_to_import.py").write_text("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)\n")
    script = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BEGIN!r}, 'slow_to_import'])"
    words = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(tmp_path)}, "stdout": subprocess.PIPE, "text": True}
    parent = subprocess.Popen([sys.executable, "-c", script], **words)
    pid = int(parent.stdout.readline())
    assert alive(pid)
    parent.kill()
    parent.wait()
    assert gone(pid)
