"""``data=huggingface``: saved data sets, parquet files and data sets in the local cache. Skipped without the libraries."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from attribution.nodes import InMemory
from experiments.datasets import DataError, HuggingFace, Split

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def encoded(level, kind="PNG", size=(4, 4)):
    file = io.BytesIO()
    Image.new("L", size, level).save(file, kind)
    return file.getvalue()


def table(levels, paths=True, **columns):
    """Images of one gray level each, as the library datasets writes them, and further columns."""
    images = [{"bytes": encoded(level), "path": f"img{level}.png" if paths else None} for level in levels]
    return pa.table({"image": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])), **columns})


def write(folder, name, levels, **columns):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table(levels, **columns), path, row_group_size=3)
    return path


def source(root, **settings):
    return HuggingFace(**{"root": root, "size": 4, "channels": 1, **settings})


def levels_of(images):
    return images.pixels[:, 0, 0, 0].tolist()


def test_parquet_files_of_splits(tmp_path, capsys):
    """Claim: shards follow each other in natural order; labels, names and ids stand by their images; other files are named."""
    write(tmp_path, "data/train-00000-of-00002.parquet", range(5), label=pa.array([3, 1, None, 0, 2]))
    write(tmp_path, "data/train-00001-of-00002.parquet", range(5, 9), label=pa.array([3] * 4))
    write(tmp_path, "data/test-00000-of-00001.parquet", range(20, 23), label=pa.array([1] * 3))
    write(tmp_path, "data/extra.parquet", range(30, 33), label=pa.array([1] * 3))
    splits = source(tmp_path, validation="test").load()
    assert levels_of(splits.train) == splits.train.index.tolist() == list(range(9))
    assert splits.train.label.tolist() == [3, 1, -1, 0, 2, 3, 3, 3, 3]
    assert splits.train.names.tolist() == [f"img{i}.png" for i in range(9)]
    assert levels_of(splits.validation) == [20, 21, 22]
    assert "as files of no split: data/extra.parquet" in capsys.readouterr().err
    few = source(tmp_path, validation="test", n_train=4, n_validation=2, seed=1).load()
    assert levels_of(few.train) == few.train.index.tolist()
    assert (len(few.train), len(few.validation)) == (4, 2)


@pytest.mark.parametrize("name", ["validation.parquet", "val-00000-of-00001.parquet", "validation/0.parquet", "dev/part-3.parquet"])
def test_a_validation_split_is_taken_if_there_is_one(tmp_path, name):
    write(tmp_path, "train/part-0.parquet" if "/" in name else "train.parquet", range(6))
    write(tmp_path, name, range(50, 54))
    assert levels_of(source(tmp_path).load().validation) == [50, 51, 52, 53]
    assert set(levels_of(source(tmp_path, validation="train").load().validation)) < set(range(6))


def test_one_split_is_divided_at_random(tmp_path):
    """Claim: the splits are disjoint; as one number changes, the other split stays; without file names, ids are names."""
    path = write(tmp_path, "pictures.parquet", range(30), paths=False)
    splits = source(path, n_train=20, n_validation=5).load()
    assert not set(splits.train.index) & set(splits.validation.index)
    for name, images in (("train", splits.train), ("validation", splits.validation)):
        assert levels_of(images) == images.index.tolist()
        assert images.names.tolist() == [f"{name}/{i}" for i in images.index]
    assert set(source(tmp_path, n_train=9, n_validation=5).load().train.index) < set(splits.train.index)
    assert len(source(tmp_path).load().validation) == 3


def test_columns_are_settings(tmp_path):
    """Claim: images may be plain bytes, labels text, and names a column; the usual columns need no setting."""
    plain = pa.array([encoded(level, "JPEG", (8, 8)) for level in range(10)], pa.binary())
    columns = {
        "picture": plain,
        "artist": pa.array([["ox", "cat2", "cat10"][i % 3] for i in range(10)]),
        "title": [f"é{i}" for i in range(10)],
    }
    parquet.write_table(pa.table(columns), tmp_path / "train.parquet")
    splits = source(tmp_path, label="artist", name="title", resize="area").load()
    for images in (splits.train, splits.validation):
        assert images.label.tolist() == [[2, 0, 1][i % 3] for i in images.index.tolist()]
        assert images.names.tolist() == [f"é{i}" for i in images.index]
        assert np.abs(np.subtract(levels_of(images), images.index)).max() <= 1
    assert source(tmp_path, resize="area").load().train.label.tolist() == [-1] * 9


def test_identity_is_content(tmp_path):
    write(tmp_path, "a/train.parquet", range(10))
    write(tmp_path, "b/one.parquet", range(10), title=pa.array([f"x{i}" for i in range(10)]))
    a, b = Split(source(tmp_path / "a"), "train"), Split(source(tmp_path / "b", name="title"), "train")
    assert a.fingerprint == b.fingerprint
    assert InMemory()(a).names.tolist() != InMemory()(b).names.tolist()


def test_all_images_that_cannot_be_used_are_named(tmp_path):
    """Claim: missing, damaged and other-sized images stand in one error, by name or row."""
    images = [encoded(0), None, b"no image", encoded(1)[:40], encoded(2, size=(5, 4)), encoded(3)]
    parquet.write_table(pa.table({"img": pa.array(images, pa.binary())}), tmp_path / "train.parquet")
    parquet.write_table(pa.table({"img": pa.array(images[:2], pa.binary())}), tmp_path / "test.parquet")
    with pytest.raises(DataError) as caught:
        source(tmp_path, validation="test").load()
    message = str(caught.value)
    assert message.startswith(f"5 of 8 images in {tmp_path} cannot be used: ")
    assert "the row has no image: train row 1, validation row 1; " in message
    assert "damaged or no image (repair or remove): train row 2, train row 3; " in message
    assert "train row 4 (5×4)" in message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"root": "absent"}, r"data\.root=.*absent: there is no such folder"),
        ({"root": "empty"}, r"neither a saved data set .* nor parquet files; image files are read by data=folder"),
        ({"root": "damaged"}, r"damaged.*\.parquet cannot be read .*it is damaged"),
        ({"train": "training"}, r"data\.train=training: .* no such split; set it to one of test, train"),
        ({"validation": "val"}, r"data\.validation=val: .* one of test, train, or data\.validation=null"),
        (
            {"image": "photo"},
            r"data\.image=photo: .* no such column; choose one of image \(bytes and path\), label \(int64\)",
        ),
        ({"image": "label"}, r"data\.image=label: .* has type int64, .*choose one of image; arrays are read by data=arrays"),
        ({"label": "score"}, r"data\.label=score: labels must be integers or text, .* has type double"),
        ({"name": "title"}, r"data\.name=title: .* no such column"),
        ({"n_train": 9}, r"data\.n_train=9 and data\.n_validation=1 of the 8 images in the split train"),
        ({"validation": "test", "n_validation": 4}, r"data\.n_validation=4: must be 1 to 3"),
        ({"size": 8}, r"8 of 8 images .* not 8×8 pixels .*data\.resize"),
        ({"root": None}, r"data\.root is missing"),
    ],
)
def test_what_does_not_fit_is_an_error_with_its_setting(tmp_path, settings, message):
    more = {"label": pa.array([0] * 8), "score": pa.array([0.5] * 8)}
    write(tmp_path, "data/train.parquet", range(8), **more)
    write(tmp_path, "data/test.parquet", range(3), **{name: column[:3] for name, column in more.items()})
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "train.parquet").write_bytes(b"PAR1 no")
    root = settings.get("root", "data")
    with pytest.raises(DataError, match=message):
        source(**{**settings, "root": root and tmp_path / root}).load()


def test_a_column_must_hold_images(tmp_path):
    parquet.write_table(pa.table({"pixels": pa.array([[1, 2], [3, 4]])}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"data\.image is missing: .* one of pixels \(list<"):
        source(tmp_path).load()


def test_without_the_libraries_an_error_names_the_extra(tmp_path, monkeypatch):
    write(tmp_path, "parquet/train.parquet", range(3))
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    for name in ("datasets", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    for root in (tmp_path / "parquet", tmp_path / "saved", "someone/pictures"):
        with pytest.raises(DataError, match=r"pip install -e '\.\[huggingface\]'"):
            source(root).load()


@pytest.fixture
def library():
    return pytest.importorskip("datasets")


def saved(library, levels):
    """A data set of gray images in two classes, some rows of which were selected."""
    features = library.Features({"image": library.Image(), "label": library.ClassLabel(names=["a", "b"])})
    images = [Image.new("L", (4, 4), level) for level in (255, *levels)]
    made = library.Dataset.from_dict({"image": images, "label": [0, *(level % 2 for level in levels)]}, features=features)
    return made.select(range(1, len(images)))


def test_saved_data_sets(tmp_path, library):
    """Claim: save_to_disk of a data set and of a dictionary of splits give the same images as parquet files."""
    train, test = saved(library, range(10)), saved(library, range(50, 53))
    train.save_to_disk(tmp_path / "one")
    library.DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "two")
    (tmp_path / "parquet").mkdir()
    train.to_parquet(tmp_path / "parquet" / "train.parquet")
    one, divided, exported = (source(tmp_path / name).load() for name in ("one", "two", "parquet"))
    for splits in (one, divided, exported):
        for images, other in zip((splits.train, splits.validation), (one.train, one.validation), strict=True):
            assert levels_of(images) == images.index.tolist() == other.index.tolist()
            assert images.label.tolist() == [i % 2 for i in images.index]
    given = source(tmp_path / "two", validation="test", store=tmp_path / "store")
    assert levels_of(given.load().validation) == [50, 51, 52]
    (tmp_path / "one" / "dataset_info.json").write_text("no")
    with pytest.raises(DataError, match=r"data\.root=.*cannot be read"):
        source(tmp_path / "one", seed=3).load()


def test_data_sets_in_the_local_cache(tmp_path, library, monkeypatch):
    """Claim: a name is looked up in the cache, without a network; what is not there is refused with the way to fetch it."""
    path = tmp_path / "pictures.parquet"
    saved(library, range(10)).to_parquet(path)
    library.load_dataset("parquet", data_files={"train": str(path)}, cache_dir=tmp_path / "cache")
    (config,) = (tmp_path / "cache" / "parquet").iterdir()
    config.rename(config.with_name("default"))
    (tmp_path / "cache" / "parquet").rename(tmp_path / "cache" / "someone___pictures")
    (arrow,) = (tmp_path / "cache").rglob("parquet-train.arrow")
    arrow.rename(arrow.with_name("pictures-train.arrow"))
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    splits = source("someone/pictures").load()
    assert levels_of(splits.train) == splits.train.index.tolist()
    assert len(splits.train) == 9
    for settings in ({"root": "someone/else"}, {"root": "someone/pictures", "subset": "large"}):
        with pytest.raises(DataError, match=r"the local cache has no such data set .*datasets\.load_dataset\('someone/"):
            source(**settings).load()
