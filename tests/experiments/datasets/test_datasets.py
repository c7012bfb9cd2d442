"""Data sources on tiny files in the real formats."""

import errno
import gzip
import hashlib
import os
import pickle
import subprocess
import sys
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from attribution.images import Images
from attribution.nodes import InMemory
from experiments.datasets import CIFAR10, CIFARMNIST, MNIST, DataError, Digits, Source, Split, Splits, downloads
from experiments.datasets.selection import random_order, select_listed
from experiments.disk import DiskError
from tests.experiments.datasets.fake_data import BATCHES, idx, write_cifar, write_mnist


def test_digits_are_scikit_learns():
    """Claim: digits are 256 and 500 disjoint rows of load_digits, 0..16 mapped to [-1, 1], with row numbers as ids."""
    digits = load_digits()
    splits = Digits().load()
    assert (len(splits.train), len(splits.validation), splits.train.shape) == (256, 500, (1, 8, 8))
    assert not set(splits.train.index) & set(splits.validation.index)
    for images in (splits.train, splits.validation):
        np.testing.assert_allclose(images.x0()[:, 0], digits.images[images.index] / 8 - 1, atol=1e-6)
        np.testing.assert_array_equal(images.label, digits.target[images.index])


def test_one_end_of_the_digits_does_not_move_the_other():
    """Claim: validation images do not depend on the number of training images; fewer are a subset of more; the seed matters."""
    few, many = Digits(n_train=100).load(), Digits(n_train=900).load()
    assert set(few.train.index) < set(many.train.index)
    np.testing.assert_array_equal(few.validation.index, many.validation.index)
    assert set(Digits(n_train=100, seed=1).load().train.index) != set(few.train.index)


def test_digits_take_a_data_root_and_ignore_it(tmp_path):
    assert Split(Digits(root=tmp_path / "nowhere"), "train").fingerprint == Split(Digits(), "train").fingerprint


def test_order_is_random_and_of_the_ids_alone():
    """Claim: every id is equally likely to be first; a subset of the ids keeps its order."""
    ids = np.arange(50)
    firsts = np.bincount([random_order(seed, "role", ids)[0] for seed in range(2000)], minlength=50)
    assert firsts.min() > 10
    assert firsts.max() < 80
    order, some = random_order(0, "role", ids), np.array([41, 3, 17, 8])
    assert some[random_order(0, "role", some)].tolist() == [i for i in order if i in some]


@pytest.mark.parametrize(("protocol", "keys"), [(2, str), (4, str), (5, bytes)])
def test_cifar_is_read_as_written(tmp_path, protocol, keys):
    """Claim: batches 1 to 5 in order are the training images, the test batch the validation images; ids are positions."""
    written = write_cifar(tmp_path, protocol=protocol, keys=keys)
    splits = CIFAR10(root=tmp_path).load()
    np.testing.assert_array_equal(splits.train.pixels, written["train"])
    np.testing.assert_array_equal(splits.validation.pixels, written["test"])
    np.testing.assert_array_equal(splits.train.label, written["train_label"])
    assert splits.train.index.tolist() == list(range(100))
    assert splits.train.pixels.dtype == np.uint8
    np.testing.assert_allclose(splits.train.x0([7])[0], written["train"][7] / 127.5 - 1, atol=1e-6)


def test_area_averages_of_cifar(tmp_path):
    """Claim: data.resize=area gives means over 2 × 2 pixels, rounded along both axes; without it, another size is refused."""
    written = write_cifar(tmp_path, per_batch=3)
    images = CIFAR10(root=tmp_path, size=16, resize="area").load().train
    mean = written["train"].reshape(15, 3, 16, 2, 16, 2).mean((3, 5))
    assert images.pixels.shape == (15, 3, 16, 16)
    assert np.abs(images.pixels - mean).max() <= 1
    assert images.index.tolist() == list(range(15))
    with pytest.raises(DataError, match=r"data\.size=16, but the train images are 3×32×32"):
        CIFAR10(root=tmp_path, size=16).load()
    with pytest.raises(DataError, match="resize=nearest: choose one of none, area"):
        CIFAR10(root=tmp_path, size=16, resize="nearest").load()


def test_python_2_pickles_are_read(tmp_path):
    """Claim: the original files are read: pickles of Python 2, with byte strings and the names of numpy 1."""
    write_cifar(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    pixels = bytes(range(256)) * 12
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x01M\x00\x0ct"
    array += b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array += b"\x89T" + len(pixels).to_bytes(4, "little") + pixels + b"tb"
    path.write_bytes(b"\x80\x02}(U\x06labels](K\x04eU\x04data" + array + b"u.")
    validation = CIFAR10(root=tmp_path).load().validation
    assert validation.pixels.tobytes() == pixels
    assert validation.label.tolist() == [4]


def test_choices_are_even_over_the_classes(tmp_path):
    """Claim: n images have equally many of each class, in order of position; without n, all; the seed determines the selection."""
    written = write_cifar(tmp_path, per_batch=60)
    settings = {"root": tmp_path, "classes": [1, 7], "n_train": 30, "n_validation": 5}
    train, validation = (splits := CIFAR10(**settings).load()).train, splits.validation
    assert np.bincount(train.label).tolist() == [0, 15, 0, 0, 0, 0, 0, 15]
    assert np.bincount(validation.label).tolist() == [0, 3, 0, 0, 0, 0, 0, 2]
    assert (np.diff(train.index) > 0).all()
    np.testing.assert_array_equal(train.pixels, written["train"][train.index])
    np.testing.assert_array_equal(CIFAR10(**settings | {"n_validation": None}).load().train.index, train.index)
    assert CIFAR10(**settings, seed=1).load().train.index.tolist() != train.index.tolist()
    assert len(CIFAR10(root=tmp_path, classes=[1, 7]).load().train) == 60


def test_published_splits_keep_their_order(tmp_path):
    """Claim: an index file sets images and order; ``n_train`` takes the first; ``validation_key=None`` selects at random."""
    write_cifar(tmp_path)
    np.savez(tmp_path / "split.npz", mine=np.array([91, 17, 1, 27], np.int32), val=np.array([17, 1]))
    settings = {"root": tmp_path, "classes": [1, 7], "index_file": tmp_path / "split.npz", "train_key": "mine"}
    splits = CIFAR10(**settings, validation_key="val").load()
    assert splits.train.index.tolist() == [91, 17, 1, 27]
    assert splits.validation.index.tolist() == [17, 1]
    assert CIFAR10(**settings, n_train=3, validation_key="val").load().train.index.tolist() == [91, 17, 1]
    np.testing.assert_array_equal(
        CIFAR10(**settings, n_validation=2).load().validation.index,
        CIFAR10(root=tmp_path, classes=[1, 7], n_validation=2).load().validation.index,
    )


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([1, 7], {"train_key": "absent"}, "no array 'absent'.*'train_idx'"),
        ([1, 100], {}, r"distinct positions in 0\.\.99"),
        ([1, 1], {}, "distinct positions"),
        ([1, 2], {}, r"classes \[2\], but data.classes=\[1, 7\]"),
        ([1, 7], {"n_train": 3}, "data.n_train=3.*lists 2 images"),
        ([0.5], {}, "list of integers"),
    ],
)
def test_wrong_index_files_are_errors(tmp_path, rows, settings, message):
    """Claim: positions that do not fit the data, its order or the key raise errors."""
    write_cifar(tmp_path)
    np.savez(tmp_path / "split.npz", train_idx=np.array(rows))
    with pytest.raises(DataError, match=message):
        CIFAR10(root=tmp_path, classes=[1, 7], index_file=tmp_path / "split.npz", **settings).load()


@pytest.mark.parametrize("content", [None, b"", b"not an archive"])
def test_unreadable_index_files_are_errors(tmp_path, content):
    write_cifar(tmp_path)
    if content is not None:
        (tmp_path / "split.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"data\.index_file: .*split\.npz"):
        CIFAR10(root=tmp_path, index_file=tmp_path / "split.npz").load()


def test_damaged_index_files_raise_nothing_else(tmp_path):
    """Claim: whatever bytes of an index file are changed or cut off, it is read or refused."""
    pool = Images(np.zeros((9, 1, 1, 1), np.uint8), np.arange(9), np.zeros(9))
    np.savez(tmp_path / "split.npz", train_idx=np.arange(9))
    whole, rng, refused = (tmp_path / "split.npz").read_bytes(), np.random.default_rng(0), 0
    for number in range(300):
        damaged = bytearray(whole[: rng.integers(1, len(whole))] if number % 4 == 0 else whole)
        for place in rng.integers(0, len(damaged), 1 + number % 5):
            damaged[place] = rng.integers(256)
        (tmp_path / "split.npz").write_bytes(damaged)
        try:
            select_listed(pool, "", None, tmp_path / "split.npz", "train_idx")
        except DataError:
            refused += 1
    assert refused > 200


@pytest.mark.parametrize("where", ["MNIST/raw", "."])
@pytest.mark.parametrize("compress", [False, True])
def test_mnist_is_read_as_written(tmp_path, where, compress):
    """Claim: idx files are read, compressed or not, from both folders, with a black border of two pixels."""
    written = write_mnist(tmp_path / where, compress=compress)
    splits = MNIST(root=tmp_path).load()
    np.testing.assert_array_equal(splits.train.pixels[:, 0, 2:-2, 2:-2], written["train"])
    assert splits.train.pixels.sum(dtype=np.int64) == written["train"].sum(dtype=np.int64)
    np.testing.assert_array_equal(splits.validation.label, np.arange(20) % 10)
    threes = MNIST(root=tmp_path, classes=[3], n_train=2, pad=0, size=28).load().train
    np.testing.assert_array_equal(threes.pixels[:, 0], written["train"][threes.index])
    assert threes.label.tolist() == [3, 3]


def test_cifar_mnist_is_airplanes_and_gray_zeros(tmp_path):
    """Claim: airplanes come first, with their CIFAR-10 ids; zeros follow in three equal channels, with ids after those."""
    planes, zeros = write_cifar(tmp_path), write_mnist(tmp_path)
    splits = CIFARMNIST(root=tmp_path, zeros=3, validation_zeros=1).load()
    train = splits.train
    assert train.label.tolist() == [0] * 10 + [1] * 3
    assert (len(splits.validation), splits.validation.index[-1] >= 20) == (3, True)
    np.testing.assert_array_equal(train.pixels[:10], planes["train"][train.index[:10]])
    np.testing.assert_array_equal(train.index[:10] % 10, 0)
    for channel in range(3):
        np.testing.assert_array_equal(train.pixels[10:, channel, 2:-2, 2:-2], zeros["train"][train.index[10:] - 100])
    lists = {"cifar_train_airplane_idx": [30, 10], "mnist_train_zero_idx": [20], "cifar_test_airplane_idx": [10]}
    np.savez(tmp_path / "split.npz", **lists, mnist_test_zero_idx=[10, 0])
    splits = CIFARMNIST(root=tmp_path, zeros=None, index_file=tmp_path / "split.npz").load()
    assert (splits.train.index.tolist(), splits.validation.index.tolist()) == ([30, 10, 120], [10, 30, 20])


def test_identity_is_content(tmp_path):
    """Claim: the same files in another folder have the same identity; other files or images have another."""
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_cifar(tmp_path / name, seed=seed)
    a, b, c = (CIFAR10(root=tmp_path / name) for name in "abc")
    assert a.description() == b.description() != c.description()
    assert Split(a, "train").fingerprint == Split(b, "train").fingerprint
    others = [
        Split(c, "train"),
        Split(a, "validation"),
        Split(a, "train", (0, 2)),
    ]
    assert len({split.fingerprint for split in (Split(a, "train"), *others)}) == 4


def test_validation_images_do_not_define_the_training_images(tmp_path):
    """Claim: the identity of the training images, and so of every model, does not depend on the validation images."""
    write_cifar(tmp_path)
    few, many = CIFAR10(root=tmp_path, n_validation=10), CIFAR10(root=tmp_path)
    assert Split(few, "train").fingerprint == Split(many, "train").fingerprint
    assert Split(few, "validation").fingerprint != Split(many, "validation").fingerprint


def test_files_are_read_once(tmp_path, monkeypatch):
    """Claim: files are read once for any number of nodes and equal sources."""
    write_mnist(tmp_path)
    reads, read = [], MNIST.read
    monkeypatch.setattr(MNIST, "read", lambda source: reads.append(source) or read(source))
    get = InMemory()
    for _ in range(3):
        source = MNIST(root=tmp_path, classes=[1, 2])
        assert len(get(Split(source, "train"))) == len(get(Split(source, "validation"))) * 2
    assert len(reads) == 1


def test_rows_are_a_subset_with_its_ids():
    """Claim: ``rows`` are positions in the split, in any order; repeated or invalid positions raise an error."""
    train = InMemory()(Split(Digits(), "train"))
    part = InMemory()(Split(Digits(), "train", (5, 2)))
    assert part.index.tolist() == train.index[[5, 2]].tolist()
    for rows in ((0, 256), (-1,), (3, 3)):
        with pytest.raises(DataError, match=r"distinct positions in 0\.\.255"):
            Split(Digits(), "train", rows).compute(InMemory())
    with pytest.raises(DataError, match="train or validation"):
        Split(Digits(), "test")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda root: CIFAR10(root=root / "nowhere"), r"data_batch_1.*nowhere.*data\.root.*download cifar10"),
        (lambda root: MNIST(root=root / "nowhere"), r"train-images-idx3-ubyte.*nowhere.*data\.root.*download mnist"),
        (lambda root: CIFAR10(root=root, n_train=200), r"data\.n_train=200 takes 20 images of class 0.*there are 10: .*<= 100"),
        (lambda root: CIFAR10(root=root, n_validation=0), r"data\.n_validation=0.*at least 1"),
        (lambda root: CIFAR10(root=root, classes=[1, 12]), r"data\.classes=\[12\]"),
        (lambda root: CIFAR10(root=root, size=16), r"data\.size=16.*3×32×32"),
        (lambda root: MNIST(root=root, pad=0), r"data\.size=32.*1×28×28"),
        (lambda root: CIFARMNIST(root=root, zeros=100), r"data\.zeros=100"),
        (lambda root: Digits(n_train=1500), r"data\.n_train=1500.*1797"),
        (lambda root: Digits(n_validation=0), r"data\.n_validation=0"),
    ],
)
def test_what_does_not_fit_is_an_error_with_its_setting(tmp_path, source, message):
    write_cifar(tmp_path)
    write_mnist(tmp_path)
    with pytest.raises(DataError, match=message):
        source(tmp_path).load()


def test_damaged_batches_are_errors(tmp_path):
    """Claim: a truncated batch, or one with other content, raises an error that names the file."""
    write_cifar(tmp_path, per_batch=2)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    whole = path.read_bytes()
    columns = np.zeros((2, 3072), np.uint8)
    contents = [
        [1, 2],
        {"data": columns},
        {"data": columns[:, :9], "labels": [0, 1]},
        {"data": columns.astype(int), "labels": [0, 1]},
        {"data": columns, "labels": [0]},
        {"data": columns, "labels": [[0], [1, 2]]},
        {"data": columns, "labels": ["a", "b"]},
    ]
    for raw in [whole[: len(whole) * k // 9] for k in range(9)] + [pickle.dumps(content) for content in contents]:
        path.write_bytes(raw)
        with pytest.raises(DataError, match="data_batch_3"):
            CIFAR10(root=tmp_path).load()
    path.unlink()
    with pytest.raises(DataError, match="no data_batch_3 in"):
        CIFAR10(root=tmp_path).load()


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_batches_cannot_run_code(tmp_path):
    """Claim: a pickle that calls anything but numpy's array constructors raises an error before the call."""
    write_cifar(tmp_path, per_batch=2)
    batch = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1], "filenames": Malicious(tmp_path / "made")}
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(batch))
    with pytest.raises(DataError, match="mkdir, which plain values and arrays do not need"):
        CIFAR10(root=tmp_path).load()
    assert not (tmp_path / "made").exists()


def test_damaged_idx_files_are_errors(tmp_path):
    """Claim: truncated files, damaged compression, other types and a wrong number of labels raise errors that name the file."""
    write_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    whole = path.read_bytes()
    beyond = whole[:4] + b"\x80\0\0\0" * 3  # 2^93 pixels, which are 0 in 64 bits
    for raw in (b"", whole[:10], whole[:-1], whole + b"0", b"\0\0\x0d" + whole[3:], beyond):
        path.write_bytes(raw)
        with pytest.raises(DataError, match="train-images-idx3-ubyte is"):
            MNIST(root=tmp_path).load()
    path.unlink()
    for raw in (gzip.compress(whole)[:-100], b"no gzip", gzip.compress(whole)[:200] + b"0" + gzip.compress(whole)[201:]):
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(raw)
        with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz"):
            MNIST(root=tmp_path).load()
    path.write_bytes(idx(np.zeros((3, 28, 28))))
    with pytest.raises(DataError, match=r"3 images, .* 40 labels"):
        MNIST(root=tmp_path).load()


@pytest.fixture
def addresses(tmp_path, monkeypatch):
    """The files of the public addresses, in a folder."""
    source = tmp_path / "public"
    write_cifar(source)
    with tarfile.open(source / "cifar.tar.gz", "w:gz") as tar:
        tar.add(source / "cifar-10-batches-py", "cifar-10-batches-py")
    write_mnist(source, compress=True)
    md5 = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in source.glob("*.gz")}
    monkeypatch.setattr(downloads, "CIFAR10", ((source / "cifar.tar.gz").as_uri(), md5.pop("cifar.tar.gz")))
    monkeypatch.setattr(downloads, "MNIST", md5)
    monkeypatch.setattr(downloads, "MNIST_ADDRESS", source.as_uri() + "/")
    return source


def test_downloads_are_by_choice_and_complete(tmp_path, addresses):
    """Claim: ``download=True`` stores exactly the files of the readers; nothing is downloaded without it or if the files exist."""
    root = tmp_path / "data"
    with pytest.raises(DataError):
        CIFARMNIST(root=root).load()
    assert not root.exists()
    fetched = CIFARMNIST(root=root, download=True, zeros=3).load()
    assert fetched.train.index.tolist() == CIFARMNIST(root=addresses, zeros=3).load().train.index.tolist()
    assert sorted(path.name for path in root.iterdir()) == ["MNIST", "cifar-10-batches-py"]
    assert sorted(path.name for path in (root / "cifar-10-batches-py").iterdir()) == sorted(BATCHES)
    for path in addresses.glob("*.gz"):
        path.unlink()
    CIFARMNIST(root=root, download=True, zeros=2).load()


def test_failed_downloads_leave_nothing(tmp_path, addresses, monkeypatch):
    """Claim: unexpected content and an unreachable address raise errors; incomplete files of the user are not overwritten."""
    root = tmp_path / "data"
    for url, md5, message in (
        (downloads.CIFAR10[0], "0" * 32, "unexpected content"),
        ((tmp_path / "none").as_uri(), "", "cannot be downloaded"),
    ):
        monkeypatch.setattr(downloads, "CIFAR10", (url, md5))
        with pytest.raises(DataError, match=message):
            CIFAR10(root=root, download=True).load()
        assert list(root.iterdir()) == []
    (root / "cifar-10-batches-py").mkdir()
    (root / "cifar-10-batches-py" / "batches.meta").write_text("mine")
    with pytest.raises(DataError, match="exists already"):
        CIFAR10(root=root, download=True).load()


@pytest.mark.parametrize("place", ["wrap_file", "shutil.copyfileobj"])
def test_a_disk_that_is_full_is_not_blamed_on_the_network(tmp_path, addresses, monkeypatch, place):
    """Claim: while files arrive or are unpacked, a full disk is an error that names the setting, and nothing incomplete remains."""

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(f"experiments.datasets.downloads.{place}", full)
    with pytest.raises(DiskError, match=r"the disk of data\.root=.* is full .*nothing of this download is kept"):
        CIFAR10(root=tmp_path / "data", download=True).load()
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.slow
def test_the_download_command_reports_errors(tmp_path):
    """Claim: a failed ``python -m experiments.datasets download`` ends with one sentence and a non-zero status."""
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "mine").write_text("")
    command = [sys.executable, "-m", "experiments.datasets", "download", "cifar10", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], check=False)
    assert result.returncode == 1
    assert "exists already" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.skipif("DATA_ROOT" not in os.environ, reason="set DATA_ROOT to a folder with CIFAR-10 and MNIST")
def test_the_real_files():
    """Claim: the published CIFAR-10 and MNIST have their known sizes and first labels."""
    cifar, mnist = CIFAR10(root=os.environ["DATA_ROOT"]).load(), MNIST(root=os.environ["DATA_ROOT"]).load()
    assert (len(cifar.train), len(cifar.validation), cifar.train.label[:5].tolist()) == (50_000, 10_000, [6, 9, 9, 4, 1])
    assert (len(mnist.train), len(mnist.validation), mnist.train.label[:5].tolist()) == (60_000, 10_000, [5, 0, 4, 1, 9])


@dataclass(frozen=True, kw_only=True)
class Own(Source):
    """A source as a user may write it: no NAME, no checks."""

    pixels: np.ndarray = field(compare=False)
    channels: int = 1
    size: int = 2
    flips: bool = False

    def read(self) -> Splits:
        images = Images(self.pixels, np.arange(len(self.pixels)), np.full(len(self.pixels), -1), self.levels)
        return Splits(images, images)


@dataclass(frozen=True, kw_only=True)
class OwnLatents(Own):
    """The same, of latents."""

    @property
    def bounded(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("pixels", "settings", "message"),
    [
        (np.zeros((3, 1, 2, 2), np.int64), {}, r"Own: the train pixels are int64: use unsigned integers 0\.\.levels, or float32"),
        (np.zeros((3, 1, 2, 2)), {}, "train pixels are float64"),
        (np.full((3, 1, 2, 2), 17, np.uint8), {"levels": 16}, r"values from 17 to 17; they must be 0\.\.16"),
        (np.full((3, 1, 2, 2), 2, np.float32), {}, r"values from 2 to 2; they must be in \[-1, 1\]"),
        (np.full((3, 1, 2, 2), np.nan, np.float32), {}, "not finite"),
        (np.zeros((3, 2, 2, 1), np.uint8), {}, r"data\.channels=1, data\.size=2, but the train images are 2×2×1"),
        (np.zeros((0, 1, 2, 2), np.uint8), {}, "no training images"),
    ],
)
def test_pixels_of_a_source_of_one_s_own_are_checked(pixels, settings, message):
    """Claim: what networks would silently take for other values is refused."""
    with pytest.raises(DataError, match=message):
        Own(pixels=pixels, root=str(pixels.dtype) + message, **settings).load()


def test_latents_of_one_s_own_have_no_bounds():
    pixels = np.full((3, 1, 2, 2), 2, np.float32)
    assert OwnLatents(pixels=pixels).load().train.x0().max() == 2
