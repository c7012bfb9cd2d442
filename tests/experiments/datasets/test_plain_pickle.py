"""Pickles of plain values and arrays of numbers, and nothing else."""

import os
import pickle
import struct

import numpy as np
import pytest

from experiments.datasets import DataError
from experiments.datasets.cifar_batches import read_batch
from experiments.datasets.plain_pickle import PlainPickleError, load, load_dict

PIXELS = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072)
BATCH = {"data": PIXELS, "labels": [3, 1], "batch_label": "testing batch 1 of 1", "filenames": ["a.png", "b.png"]}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_come_back(protocol):
    """Claim: values and arrays that Python 3 pickled by any protocol are those that pickle itself reads."""
    value = {
        "none": None, "yes": True, "no": False, "int": -(10**30), "float": 1.5, "text": "é\n", b"bytes": b"\0\xff", 7: (1, (2, 3)),
        "long": (1, 2, 3, 4), "list": [[], {}, (), ["a", "a", {"b": [1]}]],
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"), "flags": np.array([True, False]), "empty": np.empty((0, 3), np.uint8),
        "scalars": [np.int64(5), np.float32(0.5)], "array": PIXELS,
    }  # fmt: skip
    loaded = load_dict(pickle.dumps(value, protocol))
    assert loaded.keys() == value.keys()
    for key, expected in value.items():
        if isinstance(expected, np.ndarray):
            np.testing.assert_array_equal(loaded[key], expected)
            assert loaded[key].dtype.kind == expected.dtype.kind
        else:
            assert loaded[key] == expected


def test_a_batch_of_the_usual_size_takes_well_below_a_second(tmp_path):
    """Claim: a batch as CIFAR-10 has it is read in a few instructions per image."""
    pixels = np.zeros((10_000, 3072), np.uint8)
    batch = {"data": pixels, "labels": [1] * 10_000, "filenames": [f"{i}.png" for i in range(10_000)]}
    (tmp_path / "batch").write_bytes(pickle.dumps(batch, 2))
    read, labels = read_batch(tmp_path / "batch")
    assert (read.shape, labels.sum()) == ((10_000, 3, 32, 32), 10_000)


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def array(
    dtype: str, shape: bytes, content: bytes, state: bytes = b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
) -> bytes:
    """A pickled array of any dtype, shape and content, as numpy 1 wrote it."""
    made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01" + shape
    return made + b"cnumpy\ndtype\n(U" + bytes([len(dtype)]) + dtype.encode() + b"K\x00K\x01tR" + state + b"\x89" + content + b"tb"


def batch(data: bytes) -> bytes:
    return b"\x80\x02}(U\x06labels](K\x04eU\x04data" + data + b"u."


TEXT = b"T" + struct.pack("<I", 3072) + bytes(3072)
SHAPE = b"(K\x01M\x00\x0ct"
HOSTILE = {
    "a call": pickle.dumps(BATCH | {"x": Calls(os.system, "touch made")}),
    "a call by eval": pickle.dumps(BATCH | {"x": Calls(eval, "open('made', 'w')")}),
    "an inherited name": b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93\x8c\x11open('made', 'w')\x85R.",
    "a dotted name": b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93N\x85R.",
    "an instance": b"(ios\nsystem\n.",
    "an object": pickle.dumps(BATCH | {"x": Calls(complex, 1, 2)}, 2),
    "a persistent id": b"Pmade\n.",
    "an extension": b"\x82\x01.",
    "an out-of-band buffer": b"\x80\x05\x97.",
    "objects": batch(array("O8", b"(K\x01t", b"](K\x01e")),
    "objects from bytes": batch(array("O8", b"(K\x01t", b"U\x08AAAAAAAA")),
    "object scalars": pickle.dumps(BATCH | {"labels": [np.array([{}], object), 1]}),
    "records": batch(array("V8", b"(K\x01t", b"U\x08AAAAAAAA", b"(K\x03U\x01|NU\x01a(U\x01a}ttb")),
    "text": pickle.dumps(BATCH | {"labels": np.array(["a", "b"])}),
    "dates": pickle.dumps(BATCH | {"labels": np.array([1, 2], "M8[s]")}),
    "fewer bytes than the shape": batch(array("u1", b"(K\x02M\x00\x0ct", TEXT)),
    "more bytes than the shape": batch(array("u1", b"(K\x01M\x00\x0bt", TEXT)),
    "a negative shape": batch(array("u1", b"(J\xff\xff\xff\xffM\x00\x0ct", TEXT)),
    "a shape beyond 64 bits": batch(array("u1", b"(\x8a\x09" + bytes(8) + b"\x01M\x00\x0ct", TEXT)),
    "a shape of text": batch(array("u1", b"(U\x01aU\x01bt", TEXT)),
    "many axes": batch(array("u1", b"(" + b"K\x01" * 100 + b"t", b"U\x01a")),
    "an array without content": batch(b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"),
    "a huge memo": b"\x80\x02}r\xff\xff\xff\xff.",
    "a huge length": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7fabc.",
    "a huge byte array": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"abc.",
    "deep tuples as a key": b"\x80\x02})" + b"\x85" * 200_000 + b"Ns.",
    "deep lists": b"\x80\x02}U\x06labels" + b"](" * 200_000 + b"e" * 200_000 + b"s.",
    "a long name": b"c" + b"a" * 100_000 + b"\nb\n.",
    "a list that holds itself": b"\x80\x02}(U\x06labels]q\x00h\x00aU\x04data" + array("u1", SHAPE, TEXT) + b"u.",
    "a list as a dict": b"\x80\x02]U\x01aK\x01s.",
    "an unhashable key": b"\x80\x02}]K\x01s.",
    "an empty stack": b"0.",
    "a mark too many": b"((.",
    "no mark": b"}u.",
    "an unknown memo": b"h\x07.",
    "a number as a function": b"K\x01)R.",
    "state for a list": b"])b.",
    "no end": b"}",
    "nothing": b"",
    "a number": b"K\x01.",
    "labels too large": pickle.dumps(BATCH | {"labels": [2**63, 1]}),
    "labels of truths": pickle.dumps(BATCH | {"labels": [True, False]}),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_batches_are_refused(tmp_path, monkeypatch, case):
    """Claim: nothing is called, nothing else is raised, and the message is one line that names the file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data_batch_1").write_bytes(HOSTILE[case])
    with pytest.raises(DataError) as caught:
        read_batch(tmp_path / "data_batch_1")
    assert "data_batch_1" in str(caught.value)
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["data_batch_1"]


def test_well_formed_pickles_by_hand_are_read(tmp_path):
    """Claim: the array of the cases above is refused for what each changes, not for how it is written."""
    (tmp_path / "batch").write_bytes(batch(array("u1", SHAPE, TEXT)))
    pixels, labels = read_batch(tmp_path / "batch")
    assert (pixels.shape, labels.tolist()) == ((1, 3, 32, 32), [4])


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_damaged_batches_raise_nothing_else(tmp_path, protocol):
    """Claim: whatever bytes are changed or cut off, a batch is read as a whole or refused."""
    whole, rng = pickle.dumps(BATCH, protocol), np.random.default_rng(0)
    path = tmp_path / "batch"
    refused = 0
    for number in range(200):
        damaged = bytearray(whole[: rng.integers(len(whole))] if number % 4 == 0 else whole)
        structure = [*range(min(300, len(damaged))), *range(max(0, len(damaged) - 300), len(damaged))]
        for place in rng.choice(structure, 1 + number % 5) if structure else ():
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            pixels, labels = read_batch(path)
        except DataError:
            refused += 1
        else:
            assert (pixels.dtype, pixels.shape, labels.dtype, labels.shape) == (np.uint8, (2, 3, 32, 32), np.int64, (2,))
    assert refused > 50


def test_only_dicts_are_loaded():
    with pytest.raises(PlainPickleError, match="not a dict"):
        load_dict(pickle.dumps([1]))


def test_shared_parts_are_read_once():
    """Claim: a value with parts that hold each other thirty times over is read as it is shared, not copied."""
    value = [np.arange(3)]
    for _ in range(30):
        value = [value, value]
    loaded = load(pickle.dumps({"nested": value}))["nested"]
    assert loaded[0] is loaded[1]
    cycle = []
    cycle.append(cycle)
    loaded = load(pickle.dumps(cycle))
    assert loaded[0] is loaded
