"""Data sets of other tasks and forms: the square wave, Tiny-ImageNet's folder, proteins; and what refuses them."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import brentq
from torchvision.transforms.v2 import functional as vision

from robustbench_rkhs.data import (
    CIFAR100,
    MNIST,
    NPZ,
    Data,
    Digits,
    Protein,
    SquareWave,
    TinyImageNet,
    TinyImageNet20,
    arrays_digest,
    augment,
)
from robustbench_rkhs.data.amino_acids import BLOSUM62, LETTERS, encode
from robustbench_rkhs.data.augmentation import brightness, contrast, hue, jittered, saturation
from robustbench_rkhs.data.square_wave import square_wave
from robustbench_rkhs.networks import VGG
from robustbench_rkhs.nodes.node import UserError
from robustbench_rkhs.nodes.one_of import names_of
from robustbench_rkhs.zoo import SETS, named_data


def test_square_wave_points():
    splits = SquareWave(validation=60).load()
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (240, 60, 200)
    for part in (splits.train, splits.validation, splits.test):
        assert part.shape == (1,) and part.y.shape == (len(part), 1) and part.y.dtype == torch.float32
        assert part.task == "regression" and part.box == "none" and part.classes == 1
        assert part.x.min() >= -2 and part.x.max() <= 2
    assert splits.test.x[0] == -2 and splits.test.x[-1] == 2
    torch.testing.assert_close(splits.test.x.diff(dim=0), torch.full((199, 1), 4 / 199))
    assert not set(splits.train.index.tolist()) & set(splits.validation.index.tolist())
    assert square_wave(np.array([-2, -1, -0.999, 0, 0.001, 1, 1.001, 2])).tolist() == [1, 1, 0, 0, 1, 1, 0, 0]
    assert 0.4 < splits.train.y.mean() < 0.6
    assert len(splits.test.sample(20, 1)) == 20


@pytest.mark.parametrize("slope", [1.0, 2.0, 10.0])
def test_square_wave_has_the_least_error_its_card_states(slope):
    x = np.linspace(-2, 2, 400_001)
    ramps = [sign * np.clip(slope * (x - jump), -0.5, 0.5) for jump, sign in ((-1, -1), (0, 1), (1, -1))]
    best = 0.5 + sum(ramps)  # 1 on the left, three ramps of this slope
    assert best[0] == 1 and abs(best[-1]) < 1e-12 and np.abs(np.diff(best)).max() <= slope * 1.001e-5
    assert ((best - square_wave(x)) ** 2).mean() == pytest.approx(1 / (16 * slope), rel=1e-3)


def picture(path, seed, size=(64, 64), grey=False):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    (image.convert("L") if grey else image).save(path, "JPEG")


@pytest.fixture
def miniature(tmp_path, monkeypatch):
    """Tiny-ImageNet's folder with three classes, four training and two test images each; wnids.txt is not sorted."""
    monkeypatch.setenv("RKHS_DATA", str(tmp_path))
    folder, wnids, lines = tmp_path / "tiny-imagenet-200", ["n03", "n01", "n02"], []
    for c, wnid in enumerate(wnids):
        for i in range(4):
            picture(folder / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", 10 * c + i, grey=i == 3)
    for i in range(6):
        picture(folder / "val/images" / f"val_{i}.JPEG", 100 + i)
        lines.append(f"val_{i}.JPEG\t{wnids[i % 3]}\t0\t0\t62\t62")
    (folder / "wnids.txt").write_text("\n".join(wnids))
    (folder / "val/val_annotations.txt").write_text("\n".join(lines) + "\n")
    return folder


SMALL = {"classes": 3, "per_class": (4, 2)}


def test_tiny_imagenet_from_its_folder(miniature):
    splits = TinyImageNet(**SMALL).load()
    assert splits.train.x.shape == (12, 3, 64, 64) and splits.train.y.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert splits.test.y.tolist() == [2, 0, 1, 2, 0, 1]  # sorted names: n01 is 0
    first = np.asarray(Image.open(miniature / "train/n01/images/n01_0.JPEG"))
    np.testing.assert_array_equal((splits.train.x[0] * 255).round().numpy(), first.transpose(2, 0, 1))
    assert torch.equal(splits.train.x[3, 0], splits.train.x[3, 2])  # a grey one
    kept = miniature.parent / "tiny_imagenet.npz"
    assert kept.is_file()
    again = TinyImageNet(**SMALL, digest=splits.test.digest).load()
    assert torch.equal(again.train.x, splits.train.x) and again.train.digest == splits.train.digest
    before = kept.stat().st_mtime_ns
    picture(miniature / "train/n01/images/n01_9.JPEG", 5)  # another listing: decoded anew
    (miniature / "train/n01/images/n01_0.JPEG").unlink()
    other = TinyImageNet(**SMALL).load()
    assert other.train.digest != splits.train.digest and kept.stat().st_mtime_ns != before
    kept.write_bytes(kept.read_bytes()[:-500])  # damaged: decoded anew
    assert TinyImageNet(**SMALL).load().train.digest == other.train.digest
    kept.unlink()
    kept.mkdir()  # cannot be written
    assert TinyImageNet(**SMALL).load().train.digest == other.train.digest
    kept.rmdir()
    TinyImageNet(**SMALL).load()
    shutil.rmtree(miniature)
    assert TinyImageNet(**SMALL).load().train.digest == other.train.digest  # the kept arrays alone


def test_tiny_imagenet_folder_faults_are_one_line(miniature, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="expected 200 classes, found 3 in train"):
        TinyImageNet().load()
    with pytest.raises(UserError, match=r"expected 5 images of each class in train of .*, found 4 of class 0"):
        TinyImageNet(classes=3, per_class=(5, 2)).load()
    assert not (tmp_path / "tiny_imagenet.npz").exists()
    picture(miniature / "val/images/val_0.JPEG", 0, size=(32, 64))
    with pytest.raises(UserError, match=r"val_0.JPEG: expected 64x64 pixels, found 32x64"):
        TinyImageNet(**SMALL).load()
    (miniature / "val/images/val_0.JPEG").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"val_0.JPEG is no readable picture"):
        TinyImageNet(**SMALL).load()
    (miniature / "val/images/val_0.JPEG").unlink()
    with pytest.raises(UserError, match=r"val_0.JPEG is missing"):
        TinyImageNet(**SMALL).load()
    (miniature / "val/val_annotations.txt").write_text("val_1.JPEG\tn99\t0\n")
    with pytest.raises(UserError, match=r"val_annotations.txt, line 1: no image and WNID"):
        TinyImageNet(**SMALL).load()
    (miniature / "wnids.txt").unlink()
    with pytest.raises(UserError, match=r"wnids.txt is missing"):
        TinyImageNet(**SMALL).load()
    monkeypatch.setenv("RKHS_DATA", str(tmp_path / "elsewhere"))
    for data in (TinyImageNet(), TinyImageNet20(), Protein()):
        with pytest.raises(UserError, match=r"is not in data root|is missing; families there: none"):
            data.load()


def test_twenty_classes_of_tiny_imagenet_and_a_network_for_them(data_root):
    data_root("tiny_imagenet20.npz")
    splits = TinyImageNet20(train=40, validation=20).load()
    assert splits.test.y.bincount().tolist() == [50] * 20 and splits.test.shape == (3, 64, 64)
    assert splits.train.y.bincount().tolist() == [2] * 20 and splits.train.box == "unit"
    model = VGG().build(splits.test.shape, splits.test.classes)
    assert model(splits.test.x[:1]).shape == (1, 20)


def test_blosum62_is_the_published_matrix():
    assert BLOSUM62.shape == (20, 20) and (BLOSUM62 == BLOSUM62.T).all()
    at = {
        pair: BLOSUM62[LETTERS.index(pair[0]), LETTERS.index(pair[1])] for pair in ("WW", "CC", "AA", "IV", "FY", "DE", "GI", "PF")
    }
    assert at == {"WW": 11, "CC": 9, "AA": 4, "IV": 3, "FY": 3, "DE": 2, "GI": -4, "PF": -4}
    # Karlin & Altschul's lambda and H of ungapped BLOSUM62 at Robinson & Robinson's frequencies, as BLAST states them
    frequencies = "7805 5129 4487 5364 1925 4264 6295 7377 2199 5142 9019 5744 2243 3856 5203 7120 5841 1330 3216 6441"
    p = np.array([int(text) for text in frequencies.split()]) / 1e5
    pairs = np.outer(p, p) / p.sum() ** 2
    scale = brentq(lambda s: (pairs * np.exp(s * BLOSUM62)).sum() - 1, 0.1, 1)
    assert scale == pytest.approx(0.3176, abs=5e-5)
    assert (scale * BLOSUM62 * pairs * np.exp(scale * BLOSUM62)).sum() == pytest.approx(0.4012, abs=5e-5)


def test_amino_acids_as_vectors():
    one_hot = encode(["ARNDCQEGHILKMFPSTWYV", "bZx", "a"], "one_hot", 20)
    assert one_hot.dtype == np.float32 and (one_hot[0] == np.eye(20)).all()
    half = {letter: one_hot[1, LETTERS.index(letter), :3].tolist() for letter in "NDQE"}
    assert half == {"N": [0.5, 0, 0], "D": [0.5, 0, 0], "Q": [0, 0.5, 0], "E": [0, 0.5, 0]}
    assert one_hot[1].sum() == 2 and one_hot[2, 0].tolist() == [1] + [0] * 19
    rows = encode(["WYA"], "blosum62", 2)[0]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=0), 1, rtol=1e-6)
    np.testing.assert_allclose(rows[:, 1] / rows[LETTERS.index("Y"), 1] * 7, BLOSUM62[LETTERS.index("Y")], rtol=1e-5)
    with pytest.raises(UserError, match=r"sequence 1: expected amino acids .*, found \* J"):
        encode(["A", "A*j"], "blosum62", 5)


def write_family(root, train, test, family="9.9"):
    (root / "protein").mkdir(exist_ok=True)
    for part, records in (("train", train), ("test", test)):
        text = "".join(f">{label}\n{sequence}\n" for label, sequence in records)
        (root / "protein" / f"{family}.{part}.fasta").write_text(text)


def test_proteins_are_read_once_each_and_not_from_the_test_set(tmp_path, monkeypatch):
    monkeypatch.setenv("RKHS_DATA", str(tmp_path))
    train = [(1, "ACD"), (0, "WWWW"), (1, "ACD"), (0, "YYY"), (1, "KLM")]
    write_family(tmp_path, train, [(1, "ACDE"), (0, "YYY")])
    splits = Protein(family="9.9", length=4, encoding="one_hot").load()
    assert splits.train.y.tolist() == [1, 0, 1] and splits.test.y.tolist() == [1, 0]
    assert splits.train.x.shape == (3, 20, 4) and splits.train.data == "protein-9.9"
    assert splits.train.task == "ranking" and splits.train.box == "none" and splits.train.classes == 2
    assert splits.train.x[0].sum() == 3 and splits.train.x[1].sum() == 4
    assert Protein(family="9.9", length=4, encoding="blosum62").load().train.x.min() < 0
    for text, line in (
        (">2\nACD\n", "expected a header >0 or >1"),
        ("ACD\n", "before the first header"),
        (">1\n>0\nA\n", "no sequence"),
    ):
        (tmp_path / "protein/9.9.train.fasta").write_text(text)
        with pytest.raises(UserError, match=line):
            Protein(family="9.9").load()
    (tmp_path / "protein/9.9.train.fasta").write_text(">0\nACD\n")
    with pytest.raises(UserError, match="expected both labels 0 and 1"):
        Protein(family="9.9").load()
    with pytest.raises(UserError, match=r"families there: 9\.9"):
        Protein(family="7.7").load()


def test_real_proteins(data_root):
    data_root("protein")
    split = Protein(family="2.34").test()
    assert split.x.shape == (1237, 20, 400) and split.y.bincount().tolist() == [1231, 6]
    assert 1 - 1e-5 < split.x.norm(dim=1).max() < 1 + 1e-5
    overlapping = Protein(family="3.33", length=8).load()
    assert len(overlapping.train) == 1610 - 2  # one of each, less what the test set holds


def test_every_data_set_is_known_by_its_name():
    names = set(names_of(Data)) - {"npz", "npy", "folder"}
    assert (
        set(SETS)
        == names
        >= {"digits", "cifar10", "cifar100", "mnist", "tiny_imagenet", "tiny_imagenet20", "square_wave", "protein"}
    )
    assert named_data("square_wave") == SquareWave() and isinstance(named_data("mine.npz"), NPZ)
    with pytest.raises(UserError, match="did you mean 'square_wave'"):
        named_data("squarewave")


def test_subsets_of_mnist(data_root):
    data_root("MNIST/raw")
    for queried, validation in ((None, 0), (1000, 5000), (300, 1000)):
        splits = MNIST(train=queried, validation=validation).load()
        assert len(splits.train) == (queried or 60_000) and len(splits.validation) == validation
        shares = splits.train.y.bincount() / len(splits.train)
        whole = torch.tensor([5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]) / 60_000
        assert (shares - whole).abs().max() * len(splits.train) <= 2
        assert not set(splits.train.index.tolist()) & set(splits.validation.index.tolist())


def test_a_foreign_cifar100_is_refused_before_it_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.setenv("RKHS_DATA", str(tmp_path))
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    (folder / "train").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(UserError, match=r"cifar-100-python/train is truncated or altered \(its md5 is not"):
        CIFAR100().load()


def test_reflected_crops_are_windows_of_the_mirrored_image():
    x = torch.rand(32, 3, 6, 7)
    out = augment(x, 2, False, torch.Generator().manual_seed(0), "reflect")
    windows = torch.nn.functional.pad(x, (2, 2, 2, 2), mode="reflect").unfold(2, 6, 1).unfold(3, 7, 1)
    for image, all_shifts in zip(out, windows, strict=True):
        assert any(torch.equal(image, all_shifts[:, i, j]) for i in range(5) for j in range(5))
    assert out.min() >= x.min()  # no black came in
    same = (
        augment(x, 2, True, torch.Generator().manual_seed(0)),
        augment(x, 2, True, torch.Generator().manual_seed(0), "zeros", False),
    )
    assert torch.equal(*same)


COLOURS = {
    "brightness": (brightness, vision.adjust_brightness, (0.5, 1.0, 1.6)),
    "contrast": (contrast, vision.adjust_contrast, (0.5, 1.0, 2.0)),
    "saturation": (saturation, vision.adjust_saturation, (0.3, 1.0, 2.0)),
    "hue": (hue, vision.adjust_hue, (-0.4, -0.02, 0.0, 0.02, 0.3)),
}


@pytest.mark.parametrize("ours, theirs, amounts", COLOURS.values(), ids=COLOURS.keys())
def test_colours_change_as_torchvision_changes_each_image(ours, theirs, amounts):
    x = torch.rand(len(amounts), 3, 9, 8, generator=torch.Generator().manual_seed(0))
    x[:, :, 0, 0] = 0.4  # grey, black and white have no hue
    x[:, :, 0, 1], x[:, :, 0, 2] = 0.0, 1.0
    found = ours(x, torch.tensor(amounts)[:, None, None, None])
    wanted = torch.stack([theirs(image, amount) for image, amount in zip(x, amounts, strict=True)])
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_stays_in_the_box_and_is_seeded(channels):
    x = torch.rand(40, channels, 8, 8, generator=torch.Generator().manual_seed(1))
    x[:5] = (x[:5] > 0.5).float()  # at the edge of the box
    out = jittered(x, torch.Generator().manual_seed(2))
    assert out.min() >= 0 and out.max() <= 1 and (out != x).flatten(1).any(1)[5:].all()
    assert torch.equal(out, jittered(x, torch.Generator().manual_seed(2)))
    assert torch.equal(out, augment(x, 0, False, torch.Generator().manual_seed(2), jitter=True))
    stretch = out.flatten(1).std(1) / x.flatten(1).std(1)
    assert stretch[5:].std() > 0.1  # each image at its own contrast


@pytest.mark.parametrize(
    "data, line",
    [
        (SquareWave(flip=True), "are for images"),
        (Digits(crop=8, crop_padding="reflect"), "expected a crop below 8"),
    ],
)
def test_what_cannot_be_augmented_is_refused(data, line):
    with pytest.raises(UserError, match=line):
        data.load()


def test_float_labels_count_in_the_digest():
    x, y = np.zeros((2, 1), np.float32), np.array([[0.2], [0.7]], np.float32)
    assert arrays_digest(x, y) != arrays_digest(x, 0 * y)
    assert SquareWave(digest=SquareWave().test().digest).load().test.digest == SquareWave().test().digest
