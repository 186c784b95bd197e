"""Mutated bundles: a stranger's checkpoint folder or file of adversarial images, made hostile in one place, is submitted."""

import io
import json
import os
import random
import shutil
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml
from fault_child import Ended, child, command, typed
from fault_counts import Counts
from fault_fork import cheaply

CANARY = "import pathlib\npathlib.Path({sung!r}).touch()\nclass Boom: pass\n"
NAMES = ("os:system", "canary_module:Boom", "!!python/object/apply:os.system ['touch sung']", "torchvision.models:resnet18")
HUGE = (10**3, 10**6, 10**9, 10**15, 2**63, -1, 0, 1e308, float("nan"), float("inf"), -0.5)
ODD = (
    "",
    "..",
    "/etc/passwd",
    "../../outside",
    "a\nb",
    "\u202egnp.exe",
    "\x1b[2J",
    "=cmd|'/C calc'!A0",
    "x" * 4000,
    None,
    [],
    {},
    True,
)
MEMORY = 300 * 2**20
CPU = 5.0
"""What a refusal may take above refusing an empty folder."""
LIMIT = 600.0
"""Seconds of wall time after which a submission counts as hanging, also on a machine under load."""
TYPED_EVERY = 250
"""Bundles, of which one is submitted by a typed command: that costs as much as sixty forks."""
Mutate = Callable[[random.Random, Path], None]
"""Makes one place of a copied bundle hostile."""


def _leaves(value: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """Paths to every value of nested mappings and lists."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [path] if path else []
    for key, below in inner:
        found += _leaves(below, (*path, key))
    return found


def _mutated(draw: random.Random, value: object) -> object:
    """The same nested value with one place replaced, dropped or added."""
    paths = _leaves(value)
    path = draw.choice(paths)
    *above, last = path
    at: object = value
    for key in above:
        at = at[key]  # type: ignore[index]
    what = draw.randrange(5)
    if what == 0 and isinstance(at, dict):
        del at[last]
    elif what == 1 and isinstance(at, dict):
        at[draw.choice(["name", "path", "eps", "unknown", "__class__", "x" * 300])] = draw.choice([*NAMES, *ODD])
    else:
        at[last] = draw.choice([*NAMES, *HUGE, *ODD])  # type: ignore[index]
    return value


def recipe_value(draw: random.Random, bundle: Path) -> None:
    path = bundle / "recipe.yaml"
    path.write_text(yaml.safe_dump(_mutated(draw, yaml.safe_load(path.read_text()))))


def recipe_text(draw: random.Random, bundle: Path) -> None:
    """Alias bombs, depth, tags, bytes that are no text."""
    path = bundle / "recipe.yaml"
    text = path.read_text()
    bomb = "a0: &a0 [x, x]\n" + "".join(
        f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 9) + "]\n" for n in range(1, draw.randint(2, 30))
    )
    deep = "about: " + "[" * draw.choice([50, 5_000, 200_000])
    tags = f"about: {draw.choice(NAMES)}\nloss: !!python/name:os.system\n"
    noise = draw.randbytes(draw.choice([1, 100, 10_000])).decode("latin-1")
    long = "about: " + "x" * draw.choice([10**5, 10**7]) + "\n"
    merge = "base: &b {<<: *b}\n"
    path.write_text(
        draw.choice([bomb, bomb + text, deep, tags, tags + text, noise, text + noise, long + text, merge + text, "", "- 1\n"])
    )


def config_value(draw: random.Random, bundle: Path) -> None:
    path = bundle / "config.json"
    path.write_text(json.dumps(_mutated(draw, json.loads(path.read_text()))))


def config_text(draw: random.Random, bundle: Path) -> None:
    path = bundle / "config.json"
    text = path.read_text()
    cut = text[: draw.randrange(len(text))]
    deep = "[" * draw.choice([50, 100_000]) + "]" * draw.choice([50, 100_000])
    digits = '{"format": ' + "9" * draw.choice([20, 5_000, 100_000]) + "}"
    path.write_text(draw.choice([cut, deep, digits, "null", "[]", text * 2, "\ufeff" + text, ""]))


def weights_header(draw: random.Random, bundle: Path) -> None:
    """A safetensors header that claims other shapes, types, places or lengths."""
    path = bundle / "model.safetensors"
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    body = raw[8 + length :]
    name = draw.choice([key for key in header if key != "__metadata__"])
    what = draw.randrange(6)
    if what == 0:
        header[name]["shape"] = draw.choice([[10**9, 10**9], [0], [-1], [2**62, 4], [1] * 1000, header[name]["shape"] + [2]])
    elif what == 1:
        header[name]["data_offsets"] = draw.choice([[0, 10**15], [-5, 3], [0, 0], [len(body), len(body) + 8]])
    elif what == 2:
        header[name]["dtype"] = draw.choice(["F64", "BF16", "C64", "U8", "OBJECT", "", "F8_E4M3"])
    elif what == 3:
        header |= {f"extra{n}": header[name] for n in range(draw.choice([1, 1000, 50_000]))}
    elif what == 4:
        header[draw.choice(["../x", "a" * 5000, "\x00", "x\ny"])] = header.pop(name)
    text = json.dumps(header).encode()
    claimed = len(text) if what != 5 else draw.choice([0, 1, 2**40, 2**63, len(text) - 1, len(text) + 7])
    path.write_bytes(struct.pack("<Q", claimed) + text + body)


def weights_bytes(draw: random.Random, bundle: Path) -> None:
    path = bundle / "model.safetensors"
    raw = bytearray(path.read_bytes())
    what = draw.randrange(3)
    if what == 0:
        raw = raw[: draw.randrange(len(raw))]
    elif what == 1:
        raw += draw.randbytes(draw.choice([1, 10_000]))
    else:
        for _ in range(draw.choice([1, 20])):
            raw[draw.randrange(len(raw))] = draw.randrange(256)
    path.write_bytes(raw)


def files(draw: random.Random, bundle: Path) -> None:
    """Files that are missing, too many, links, pipes, folders or of another kind."""
    what, name = draw.randrange(8), draw.choice(["config.json", "model.safetensors", "recipe.yaml"])
    if what == 0:
        (bundle / name).unlink()
    elif what == 1:
        (bundle / draw.choice(["evil.py", "__init__.py", "conftest.py", "model.pth", ".hidden", "a\nb", "x" * 200])).write_text(
            CANARY
        )
    elif what == 2:
        (bundle / name).unlink()
        (bundle / name).symlink_to(draw.choice(["/etc/passwd", "/dev/zero", "..", name]))
    elif what == 3:
        (bundle / name).unlink()
        os.mkfifo(bundle / name)
    elif what == 4:
        (bundle / name).unlink()
        (bundle / name).mkdir()
    elif what == 5:
        (bundle / "resume.pt").write_bytes(_pickle(bundle))
    elif what == 6:
        (bundle / name).write_bytes(_pickle(bundle))
    else:
        with (bundle / draw.choice(["metrics.jsonl", name])).open("ab") as stream:
            stream.truncate(draw.choice([2**30, 2**33]))  # a hole: large, and takes no disk


def _pickle(bundle: Path) -> bytes:
    """A pickle that leaves a file where it is loaded."""
    sung = str(bundle.parent / "sung")
    return b"cbuiltins\nexec\n(V" + CANARY.format(sung=sung).encode("unicode_escape") + b"\ntR."


def archive(draw: random.Random, path: Path) -> None:
    """Adversarial images whose archive or arrays lie about themselves."""
    raw = bytearray(path.read_bytes())
    what = draw.randrange(6)
    if what == 0:
        raw = raw[: draw.randrange(len(raw))]
    elif what == 1:
        for _ in range(draw.choice([1, 20])):
            raw[draw.randrange(len(raw))] = draw.randrange(256)
    else:
        with np.load(path) as stored:
            arrays = {name: stored[name] for name in stored.files}
        name = draw.choice(list(arrays))
        if what == 2:
            del arrays[name]
        elif what == 3:
            arrays[name] = np.array(draw.choice([[None, "x"], [1, 2], [], "text", [np.nan] * 3, [2**62]]), dtype=object)
        elif what == 4:
            header = json.loads(arrays["header"].tobytes())
            arrays["header"] = np.frombuffer(json.dumps(_mutated(draw, header)).encode(), np.uint8)
        else:
            arrays[name] = arrays[name][: len(arrays[name]) // 2]
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # object arrays are pickled here, on purpose
        raw = bytearray(buffer.getvalue())
        if what == 5:
            raw = bytearray(_lying(draw))
    path.write_bytes(raw)


def _lying(draw: random.Random) -> bytes:
    """A member whose header claims far more than it holds, or that unpacks to far more."""
    shape = draw.choice(["(10000000000,)", "(100000, 100000, 3)", "(" + "1, " * 40 + ")", "(-1,)"])
    text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()
    buffer = io.BytesIO()
    packed = draw.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    words = "index images label predicted predicted_adversarial distance_l2 distance_linf method input_sha256 header"
    with zipfile.ZipFile(buffer, "w", packed) as made:
        for name in words.split():
            made.writestr(f"{name}.npy", member + (b"\0" * 10**7 if packed == zipfile.ZIP_DEFLATED else b""))
    return buffer.getvalue()


FOLDERS: dict[str, Mutate] = {
    "recipe value": recipe_value,
    "recipe text": recipe_text,
    "config value": config_value,
    "config text": config_text,
    "weights header": weights_header,
    "weights bytes": weights_bytes,
    "files": files,
}
KINDS = (*FOLDERS, "adversarial images")


CHECKPOINT = ["submit", "checkpoint", "theirs", "--eps", "0.3", "--sample", "4", "--samples", "8", "--attack", "superdeepfool"]
CHECKPOINT += ["--certify", "margin", "--device", "cpu"]
ADVERSARIALS = ["submit", "adversarials", "found.npz", "--model", "tiny", "--device", "cpu"]


def bundles(stage: Path, scratch: Path, count: int, seed: int, only: str | None = None) -> Counts:
    """`count` bundles, shared among the kinds by turns, every `TYPED_EVERY`th by a typed command, the others in forks. One that is
    accepted must leave the listed model's rows as they were."""
    draw, counts = random.Random(seed), Counts()
    chosen = [kind for kind in KINDS if only in (None, kind)]
    (scratch / "empty").mkdir(exist_ok=True)
    empty = ["submit", "checkpoint", "empty", "--eps", "0.1"]
    least = {"fork": child(cheaply(command(empty)), scratch, LIMIT)}
    for turn in range(count):
        kind, way = chosen[turn % len(chosen)], "fork" if (turn + 1) % TYPED_EVERY else "typed"
        place = scratch / "bundle"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        shutil.copytree(stage / "reports" / "verdicts", place / "reports" / "verdicts")
        (place / "canary_module.py").write_text(CANARY.format(sung=str(place / "sung")))
        before = _bytes_under(place / "reports" / "verdicts")
        if kind in FOLDERS:
            shutil.copytree(stage / "theirs", place / "theirs")
            FOLDERS[kind](draw, place / "theirs")
            words = CHECKPOINT
        else:
            shutil.copytree(stage / "tiny", place / "tiny")
            shutil.copy2(stage / "found.npz", place / "found.npz")
            archive(draw, place / "found.npz")
            words = ADVERSARIALS
        if way == "typed" and way not in least:
            least[way] = child(typed(empty), scratch, LIMIT)
        pristine = scratch / "pristine"
        shutil.rmtree(pristine, ignore_errors=True)
        subprocess.run(["cp", "-a", place, pristine], check=True)  # pipes and links, too
        ended = child(typed(words) if way == "typed" else cheaply(command(words)), place, LIMIT)
        if ended.code is None:  # other work may have taken the processor: once more, from the start
            counts.ways[f"{way}, again after {LIMIT:g} s"] += 1
            shutil.rmtree(place)
            subprocess.run(["cp", "-a", pristine, place], check=True)
            ended = child(typed(words) if way == "typed" else cheaply(command(words)), place, LIMIT)
        where = f"{kind}, turn {turn}, seed {seed}"
        counts.tried[kind] += 1
        counts.ways[f"{way}, exit code {ended.code}"] += 1
        _judge(counts, ended, least[way], where)
        if (place / "sung").exists():
            counts.fault("executed", where)
        after = _bytes_under(place / "reports" / "verdicts")
        changed = [name for name in before if before[name] != after.get(name)]
        counts.fault("silently_changed", f"{where}: {changed[:1]}", len(changed))
    return counts


def _judge(counts: Counts, ended: Ended, least: Ended, where: str) -> None:
    """What a submission may not do, whether it is accepted or refused."""
    last = ended.said.strip().splitlines()[-1:] or [""]
    counts.fault("tracebacks", f"{where}: {ended.said[-300:]}", ended.traceback)
    if ended.code is None:
        counts.fault("over_time", f"{where}: not ended after {LIMIT:g} s")
    elif ended.code == 2:
        counts.fault("over_memory", f"{where}: {ended.memory >> 20} MiB: {last[0][:150]}", ended.memory - least.memory > MEMORY)
        counts.fault("over_time", f"{where}: {ended.cpu:.1f} CPU s: {last[0][:150]}", ended.cpu - least.cpu > CPU)
    elif ended.code not in (0, 2):
        counts.fault("tracebacks", f"{where}: exit code {ended.code}: {last[0][:200]}")


def _bytes_under(folder: Path) -> dict[str, bytes]:
    """The finished tables under a folder (parts may be added)."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("l2-*.parquet"))}
