"""Data: splits that do not meet, subsets that nest, digests, and one clear line for every bad file."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_rkhs.data import CIFAR10, MNIST, NPZ, Digits, arrays_digest, augment, order_by_class
from robustbench_rkhs.nodes.node import UserError


def test_digits_are_real_and_their_splits_do_not_meet():
    splits = Digits(validation=200, seed=3).load()
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 1797
    assert not set(splits.train.index.tolist()) & set(splits.validation.index.tolist())
    images = [{image.numpy().tobytes() for image in part.x} for part in (splits.train, splits.validation, splits.test)]
    assert not images[1] & images[2]
    for part in (splits.train, splits.validation, splits.test):
        assert part.x.dtype == torch.float32 and part.x.min() >= 0 and part.x.max() <= 1
        assert part.y.bincount(minlength=10).min() >= len(part) // 10 - 4


def test_validation_is_never_the_test_set_whatever_the_seed():
    first, second = Digits(validation=100, seed=0).load(), Digits(validation=100, seed=1).load()
    assert torch.equal(first.test.x, second.test.x)
    assert not torch.equal(first.validation.index, second.validation.index)
    assert torch.equal(Digits().test().x, first.test.x)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 40), min_size=2, max_size=6), st.integers(0, 9), st.data())
def test_every_prefix_of_the_order_is_stratified(counts, seed, data):
    y = np.repeat(np.arange(len(counts)), counts)
    order = order_by_class(y, seed)
    assert sorted(order) == list(range(len(y)))
    n = data.draw(st.integers(1, len(y)))
    found = np.bincount(y[order[:n]], minlength=len(counts))
    assert (np.abs(found - n * np.array(counts) / len(y)) <= 1 + 1e-9 + len(counts) / 2).all()
    assert (order_by_class(y, seed) == order).all()


def test_samples_are_seeded_stratified_and_nested():
    test = Digits().test()
    small, large = test.sample(50, 7), test.sample(200, 7)
    assert set(small.index.tolist()) < set(large.index.tolist())
    assert small.y.bincount(minlength=10).tolist() == [5] * 10
    with pytest.raises(UserError, match="1 to 500 samples"):
        test.sample(501)


def test_crop_shifts_and_flip_mirrors():
    x = torch.rand(64, 3, 8, 8)
    generator = torch.Generator().manual_seed(0)
    out = augment(x, 2, False, generator)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    windows = padded.unfold(2, 8, 1).unfold(3, 8, 1)  # every shift there is
    for image, all_shifts in zip(out, windows, strict=True):
        assert any(torch.equal(image, all_shifts[:, i, j]) for i in range(5) for j in range(5))
    flipped = augment(x, 0, True, torch.Generator().manual_seed(1))
    same = (flipped == x).flatten(1).all(1)
    assert torch.equal(flipped[~same], x[~same].flip(3)) and 10 < same.sum() < 54


def save(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def arrays(**changes):
    generator = np.random.default_rng(0)
    base = {
        "x_train": generator.integers(0, 256, (30, 6, 6, 3), dtype=np.uint8),
        "y_train": np.arange(30) % 3,
        "x_test": generator.integers(0, 256, (9, 6, 6, 3), dtype=np.uint8),
        "y_test": np.arange(9) % 3,
    }
    return base | changes


def test_your_own_arrays(tmp_path):
    stored = arrays()
    path = save(tmp_path / "mine.npz", **stored)
    splits = NPZ(path=path, validation=6).load()
    assert splits.test.x.shape == (9, 3, 6, 6) and splits.train.classes == 3 and len(splits.train) == 24
    np.testing.assert_allclose(splits.test.x[0, 2].numpy(), stored["x_test"][0, :, :, 2] / 255, rtol=1e-6)
    digest = arrays_digest(stored["x_test"], stored["y_test"])
    assert splits.test.digest == digest
    NPZ(path=path, digest=digest).load()
    with pytest.raises(UserError, match=f"expected test digest {'0' * 64}, found {digest}"):
        NPZ(path=path, digest="0" * 64).load()


BAD = {
    "NaN": (
        {"x_test": np.full((9, 6), np.nan, np.float32), "x_train": np.zeros((30, 6), np.float32)},
        "image 0 holds NaN",
    ),
    "range": ({"x_train": np.full((30, 6), 2.0), "x_test": np.zeros((9, 6))}, r"in \[0, 1\], found 2 to 2"),
    "labels": ({"y_test": np.arange(9)}, "test label 8 is out of range, train labels end at 2"),
    "negative": ({"y_test": np.full(9, -1)}, "integer labels from 0"),
    "count": ({"y_train": np.arange(29) % 3}, "one label per image"),
    "empty": ({"x_test": np.zeros((0, 6, 6, 3), np.uint8), "y_test": np.zeros(0, int)}, "no images"),
    "shape": ({"x_test": np.zeros((9, 5, 5, 3), np.uint8)}, "differ"),
    "type": ({"x_test": np.zeros((9, 6, 6, 3), np.int32)}, "expected uint8 images"),
    "object": ({"x_test": np.array([{}] * 9, dtype=object)}, "not a readable .npz"),
}


@pytest.mark.parametrize("changes, line", BAD.values(), ids=BAD.keys())
def test_bad_arrays_are_one_clear_line(tmp_path, changes, line):
    with pytest.raises(UserError, match=line):
        NPZ(path=save(tmp_path / "bad.npz", **arrays(**changes))).load()


def test_truncated_missing_and_foreign_files(tmp_path, monkeypatch):
    path = tmp_path / "cut.npz"
    save(path, **arrays())
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UserError, match=r"cut.npz is not a readable .npz file"):
        NPZ(path=str(path)).load()
    np.savez(path, x_train=np.zeros(3))
    with pytest.raises(
        UserError,
        match=r"expected arrays x_train, y_train, x_test and y_test, found x_train; .*y_train=LABELS, x_test=IMAGES, y_test",
    ):
        NPZ(path=str(path)).load()
    with pytest.raises(UserError, match=r"no file 'nowhere\.npz'"):
        NPZ(path="nowhere.npz").load()
    monkeypatch.setenv("RKHS_DATA", str(tmp_path))
    monkeypatch.setenv("RKHS_DOWNLOAD", "0")
    with pytest.raises(UserError, match="'cifar10' is not in data root"):
        CIFAR10().load()
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(UserError, match="data_batch_1 is missing"):
        CIFAR10().load()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"half a file")
    with pytest.raises(UserError, match="truncated or altered"):
        CIFAR10().load()


def test_a_named_set_is_read_from_its_npz(tmp_path, monkeypatch):
    monkeypatch.setenv("RKHS_DATA", str(tmp_path))
    save(tmp_path / "cifar10.npz", **arrays())
    assert CIFAR10(train=10).load().train.x.shape == (10, 3, 6, 6)


@pytest.mark.parametrize("queried", [{"train": 31}, {"validation": 30}, {"train": 25, "validation": 6}])
def test_more_images_than_there_are(tmp_path, queried):
    path = save(tmp_path / "mine.npz", **arrays())
    with pytest.raises(UserError, match="has 30 training images"):
        NPZ(path=path, **queried).load()


def test_cifar10_from_its_standard_folder(data_root):
    data_root("cifar-10-batches-py")
    splits = CIFAR10(train=1000, validation=500, seed=42).load()
    assert splits.test.y.bincount().tolist() == [1000] * 10
    assert splits.train.y.bincount().tolist() == [100] * 10
    mean = splits.test.x.mean((0, 2, 3))
    torch.testing.assert_close(mean, torch.tensor([0.4942, 0.4851, 0.4504]), atol=1e-3, rtol=0)


def test_mnist_from_its_standard_folder(data_root):
    data_root("MNIST/raw")
    splits = MNIST(train=300, validation=300).load()
    assert splits.test.y.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert splits.train.x.shape == (300, 1, 28, 28)


def test_the_first_samples_are_the_first_of_the_set():
    test = Digits().test()
    first = test.sample(7, order="first")
    assert first.index.tolist() == list(range(7)) and torch.equal(first.x, test.x[:7]) and first.digest == test.digest
