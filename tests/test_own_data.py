"""Data of one's own and of size: folders of pictures, memory maps, test-only files; read block by block, with the same verdicts."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from robustbench_rkhs import UserError, evaluate, verdicts
from robustbench_rkhs.data import ImageFolder, Split, Stream, arrays_digest
from robustbench_rkhs.data.splits import split_digest
from robustbench_rkhs.data.stream import stream_of_array
from robustbench_rkhs.evaluation.tables import SMALL, Tables
from robustbench_rkhs.nodes.code_names import TYPED
from robustbench_rkhs.zoo import NamedModel, images, named_data

COUNT = 12
BYTES = np.random.default_rng(0).integers(0, 256, (COUNT, 3, 6, 6), dtype=np.uint8)
LABELS = np.arange(COUNT) % 3
FAST: dict[str, Any] = {"eps": 0.05, "certificates": "margin", "attacks": "superdeepfool", "diagnostics": False}


def net(classes: int = 5, size: int = 108) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(size, classes))


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    np.save(tmp_path / "x_test.npy", BYTES)
    np.save(tmp_path / "y_test.npy", LABELS)
    return tmp_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, (pixels, label) in enumerate(zip(BYTES, LABELS, strict=True)):
        place = tmp_path / "photos" / f"class_{label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(place / f"{number:02}.png")
    return tmp_path / "photos"


def table(done: Any) -> Any:
    return done.table[["index", "input_sha256", "method", "predicted", "radius", "distance_l2", "state_reason"]]


def test_a_stream_reads_what_it_is_asked_for_and_nothing_else() -> None:
    read: list[int] = []

    def rows(positions: np.ndarray) -> Tensor:
        read.extend(positions.tolist())
        return torch.from_numpy(BYTES[positions]).float() / 255

    stream, whole = Stream.of(rows, COUNT), torch.from_numpy(BYTES).float() / 255
    assert stream.shape == whole.shape and stream.dtype == whole.dtype and len(stream) == COUNT and read == [0]
    some = torch.tensor([4, 2, 9])
    assert torch.equal(stream[some], whole[some]) and read == [0, 4, 2, 9]
    for index in (3, -1, torch.tensor(3), np.int64(-1), slice(2, 5), slice(0, 0), torch.arange(COUNT) % 2 == 0):
        assert torch.equal(stream[index], whole[index])
    assert torch.equal(torch.cat(list(stream.split(5))), whole) and torch.equal(torch.stack(list(stream)), whole)
    assert torch.equal(stream.at(some).to(torch.float64)[1], whole[2].double())
    for question in (lambda: stream + 1, lambda: stream.amax(), lambda: torch.cat([stream, stream])):
        with pytest.raises(UserError, match="block by block"):
            question()


def test_a_memory_map_has_the_digest_and_the_verdicts_of_the_array(arrays: Path) -> None:
    mapped = named_data(str(arrays)).test()
    whole = torch.from_numpy(BYTES).float() / 255
    assert isinstance(mapped.x, Stream) and torch.equal(mapped.x[:], whole)
    assert mapped.digest == split_digest(whole, torch.from_numpy(LABELS)) == arrays_digest(whole.numpy(), LABELS)
    model = net()
    one = evaluate(model, (BYTES, LABELS), block=5, **FAST)
    for data in (str(arrays), str(arrays / "x_test.npy"), (np.load(arrays / "x_test.npy", mmap_mode="r"), LABELS)):
        other = evaluate(model, data, block=5, **FAST)
        pd.testing.assert_frame_equal(table(other), table(one), rtol=1e-12, atol=0)


def test_a_memory_map_of_floats_is_checked_as_it_is_read() -> None:
    floats = (BYTES / 255).astype(np.float32)
    floats[7, 0, 0, 0] = 2
    stream = stream_of_array(floats, "data set 'mine', test")
    assert stream[:5].shape == (5, 3, 6, 6)
    with pytest.raises(UserError, match=r"data set 'mine', test: expected float images in \[0, 1\]"):
        _ = stream[5:]


def test_a_data_set_of_size_is_read_block_by_block_with_the_same_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    class Large(Dataset[Any]):
        targets = LABELS.tolist()
        reads = 0

        def __len__(self) -> int:
            return COUNT

        def __getitem__(self, place: int) -> Any:
            self.reads += 1
            return torch.from_numpy(BYTES[place]).float() / 255, int(LABELS[place])

    model, large = net(), Large()
    one = evaluate(model, large, **FAST)
    monkeypatch.setattr(images, "IN_MEMORY", 0)
    assert isinstance(images.as_split(large)[0], Stream)
    assert table(evaluate(model, large, **FAST)).equals(table(one))
    large.reads = 0
    evaluate(model, large, samples=2, **FAST)
    large.__class__.__getitem__ = lambda self, place: (torch.rand(3, 6, 6), 0)  # type: ignore[method-assign]
    with pytest.raises(UserError, match="different images for the same index"):
        evaluate(model, large, **FAST)


def test_a_folder_of_pictures_is_its_pixels_and_the_class_count_is_the_model_s(folder: Path) -> None:
    split = named_data(str(folder)).test()
    assert isinstance(split.x, Stream) and split.shape == (3, 6, 6) and split.classes == 3 and split.data == "photos"
    order = np.argsort(LABELS, kind="stable")
    assert torch.equal(split.x[:], torch.from_numpy(BYTES[order]).float() / 255)
    assert torch.equal(split.y, torch.from_numpy(LABELS[order]))
    assert verdicts.summary(evaluate(net(3), str(folder), **FAST))["images"].iloc[0] == COUNT


def test_of_a_folder_s_classes_the_model_knows_more_only_where_it_is_said_which(folder: Path) -> None:
    with pytest.raises(UserError, match=r"has 3 classes, the model 1000: which are they\?"):
        evaluate(net(1000), str(folder), **FAST)
    (folder / "classes.txt").write_text("\n".join(f"class_{number}" for number in reversed(range(1000))))
    named = NamedModel("large", net(1000), named_data(str(folder)))
    assert named.test.classes == 1000 and sorted(set(named.test.y.tolist())) == [997, 998, 999]
    (folder / "classes.txt").write_text("class_0\nclass_1")
    with pytest.raises(UserError, match="class 'class_2' is not in"):
        _ = NamedModel("large", net(1000), named_data(str(folder))).test
    (folder / "classes.txt").unlink()
    for label in range(3):
        (folder / f"class_{label}").rename(folder / f"{100 + label:04}")
    named = NamedModel("large", net(1000), named_data(str(folder)))
    assert named.test.classes == 1000 and sorted(set(named.test.y.tolist())) == [100, 101, 102]


def test_pictures_are_resized_to_the_model_or_to_what_is_said(folder: Path) -> None:
    Image.new("L", (9, 12), 255).save(folder / "class_0" / "white.png")
    with pytest.raises(UserError, match="pictures of 6x6 and 9x12 pixels; say a size"):
        named_data(str(folder)).test()
    assert named_data(f"{folder}:size=4").test().shape == (3, 4, 4)
    named = NamedModel("small", net(3, 16), named_data(str(folder)), shape=(1, 4, 4), classes=3)
    assert named.test.shape == (1, 4, 4)
    white = int((named.test.x[:].flatten(1).amin(1) == 1).sum())
    assert white == 1


@pytest.mark.parametrize("fault", ["no subfolders", "no pictures", "no picture", "no folder"])
def test_a_folder_that_is_none_is_refused_in_one_line(fault: str, tmp_path: Path) -> None:
    if fault != "no subfolders":
        (tmp_path / "a").mkdir()
    if fault == "no picture":
        (tmp_path / "a" / "x.png").write_text("text")
    data = ImageFolder(path=str(tmp_path / "absent" if fault == "no folder" else tmp_path))
    words = {"no subfolders": "a subfolder per class", "no pictures": "no pictures in", "no picture": "no readable picture"}
    with pytest.raises(UserError, match=words.get(fault, "no folder")):
        data.test()


def test_a_file_of_test_images_alone_is_enough(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", x_test=BYTES, y_test=LABELS)
    split = named_data(str(tmp_path / "mine.npz")).test()
    assert split.classes == 3 and torch.equal(split.x, torch.from_numpy(BYTES).float() / 255)
    assert NamedModel("five", net(), named_data(str(tmp_path / "mine.npz"))).test.classes == 5
    with pytest.raises(UserError, match="add what is missing"):
        named_data(str(tmp_path / "mine.npz")).load()


@pytest.mark.parametrize("left", ["tables", "parts"])
@pytest.mark.parametrize("workers", [1, 2])
def test_images_in_a_file_of_another_name_are_the_same_data_set(left: str, workers: int, tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", x_test=BYTES, y_test=LABELS)
    np.savez(tmp_path / "copy.npz", x_test=BYTES, y_test=LABELS)
    np.savez(tmp_path / "others.npz", x_test=255 - BYTES, y_test=LABELS)
    settings = FAST | {"folder": tmp_path / "out", "name": "net", "workers": workers, "block": 4}
    first = evaluate(net(), str(tmp_path / "mine.npz"), **settings)
    if left == "parts":  # the evaluation was interrupted before its table was written
        first.path.unlink()
    said: list[str] = []
    again = evaluate(
        net(), str(tmp_path / "copy.npz"), **settings | {"eps": (0.02, 0.05)}, on_event=lambda one: said.append(str(one))
    )
    assert set(again.table["data"]) == {again.about.data} == {"mine.npz"}
    assert again.about.data_digest == first.about.data_digest and any(
        "copy.npz holds the images of mine.npz" in one for one in said
    )
    other = evaluate(net(), str(tmp_path / "others.npz"), **settings)
    assert other.about.data == "others.npz" and other.about.data_digest != first.about.data_digest


@pytest.mark.parametrize("workers", [1, 2])
def test_a_data_set_of_the_package_keeps_its_name_whatever_file_holds_its_images(workers: int, tmp_path: Path) -> None:
    """Also where finished parts of the same images bear the file's name: rows have the name that is asked for now."""
    split = named_data("digits").test().sample(6, 0, "first")
    settings = FAST | {"folder": tmp_path, "name": "net", "workers": workers, "block": 4}
    model = net(10, 64)
    split = replace(split, y=model(split.x).argmax(1))  # every image is certified or attacked
    assert evaluate(model, replace(split, data="copy.npz"), **settings).about.data == "copy.npz"
    again = evaluate(model, replace(split, data="digits"), **settings | {"eps": (0.05, 0.1)})
    assert set(again.table["data"]) == {again.about.data} == {"digits"}


@pytest.mark.parametrize(
    ("x", "y", "line"),
    [
        (BYTES, LABELS + 10**9, "class ids below 100,000, found a label 10000000"),
        ((BYTES > 99).astype(np.uint8), LABELS, "found only 0 and 1"),
        (BYTES.astype(np.float32), LABELS, "divide them by 255"),
        (BYTES, np.eye(3)[LABELS], r"labels.argmax\(1\)"),
        (BYTES, LABELS[:, None], r"labels.squeeze\(1\)"),
        (BYTES, LABELS.astype(float), "integer labels"),
        (BYTES[:0], LABELS[:0], "no images"),
    ],
)
def test_a_file_is_refused_in_the_words_of_a_call(x: np.ndarray, y: np.ndarray, line: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", x_test=x, y_test=y)
    with pytest.raises(UserError, match=line) as typed:
        evaluate(net(), str(tmp_path / "mine.npz"), **FAST)
    with pytest.raises(UserError, match=line) as passed:
        evaluate(net(), (x, y), **FAST)
    assert str(typed.value).replace("'mine.npz'", "'arrays'") == str(passed.value)


def test_adversarial_images_of_a_stream_are_kept_where_they_are_few(arrays: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = evaluate(net(), str(arrays), adversarials=True, **FAST)
    assert len(done.adversarials().images) > 0
    from robustbench_rkhs.evaluation import run

    monkeypatch.setattr(run, "KEPT", 10)
    with pytest.raises(UserError, match="too many here"):
        evaluate(net(), str(arrays), adversarials=True, **FAST)
    assert isinstance(named_data(str(arrays)).test(), Split)


def resident() -> int:
    """Bytes of this process that lie in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="the system does not say what lies in memory")
def test_blocks_that_are_read_one_after_the_other_leave_no_holes_in_memory(tmp_path: Path) -> None:
    """Beside each block something small is kept, as the rows about it are; 60 holes of a block would be 0.6 GB."""
    np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, (480, 3, 224, 224)).flush()  # sparse
    images, kept = stream_of_array(np.load(tmp_path / "x.npy", mmap_mode="r"), "test"), []
    for number, some in enumerate(torch.arange(480).split(8)):
        if number == 10:
            before = resident()
        block = images[some].double().clone()
        kept.append([pd.DataFrame({"index": some.numpy(), name: block.mean((1, 2, 3)).numpy()}) for name in "abc"])
        del block
    assert resident() - before < 100e6


def test_many_small_tables_are_kept_as_few() -> None:
    tables = Tables()
    for number in range(1000):
        tables.append(pd.DataFrame({"index": [number]}))
    assert len(tables) < SMALL and pd.concat(tables)["index"].tolist() == list(range(1000))


STRIPES = str(Path(__file__).parent.parent / "examples" / "own" / "own_data.py") + ":Stripes"


def test_a_data_set_of_ones_own_is_typed_with_its_fields_and_imported_only_where_it_was_typed() -> None:
    found: Any = named_data(f"{STRIPES}:noise=0.1", TYPED)
    assert (type(found).__name__, found.noise, len(found.test())) == ("Stripes", 0.1, 100)
    with pytest.raises(UserError, match="--allow-code"):
        named_data(STRIPES)
    with pytest.raises(UserError, match="noise"):
        named_data(f"{STRIPES}:nose=0.1", TYPED)
    done = evaluate(net(2, 64), f"{STRIPES}:noise=0.1", samples=4, **FAST)
    assert done.about.data and len(verdicts.states(done, 0.05)) == 4
