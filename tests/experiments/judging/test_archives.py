"""The folders of pickles of D-TRAK and DAS, as synthetic ones of their structure."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from experiments.datasets.errors import DataError
from experiments.judging.archives import has_masks, has_measurements, masks_in, measurements_in
from experiments.judging.given import Given
from experiments.judging.scores import outline
from experiments.judging.truth import GIVEN, read_truth
from tests.experiments.judging.files import K, N, Q, saved, world
from tests.experiments.judging.test_judge import judged, value

T, NOISES = 3, 2
IDS = np.random.default_rng(3).permutation(100)[:N]


def dump(content, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))


def losses(measured: np.ndarray, random: np.random.Generator) -> list[np.ndarray]:
    """NOISES arrays ``[T, Q]`` with the mean ``measured [Q]``."""
    noise = random.normal(size=(NOISES, T, Q))
    return list(measured + noise - noise.mean((0, 1)))


def archive(folder: Path, kinds=("val", "gen"), das: bool = False) -> dict[str, str]:
    """Write an archive of ``world()``, whose generated queries have twice the measurements of the held-out ones."""
    given, random = world(), np.random.default_rng(4)
    indices, models = folder / "indices", folder / "lds-val"
    dump([int(i) for i in IDS], indices / "idx-train.pkl")
    for i, mask in enumerate(given.masks):
        dump([*random.permutation(IDS[mask])], indices / "lds-val" / f"sub-idx-{i}.pkl")  # numpy's numbers
        for s in range(K):
            for kind in kinds:
                arrays = losses(given.measurements[s, i] * (2 if kind == "gen" else 1), random)
                model = models / f"ddpm-sub-{i}-{s}"
                if das:
                    dump([np.mean(arrays, 0)[:, :3], np.mean(arrays, 0)[:, 3:]], model / f"ddpm-{kind}-errors-1000.pkl")
                    continue
                for e, array in enumerate(arrays):
                    batches = [[row[:3] for row in array], [row[3:] for row in array]]  # of timesteps
                    dump(batches, model / f"e-{e}-{kind}.pkl")
    return {"masks": str(indices / "lds-val"), "measurements": str(models)}


@pytest.mark.parametrize("das", [False, True])
def test_an_archive_holds_what_it_was_written_from(tmp_path, das):
    """Claim: masks are in the order of the training ids, measurements the mean over timesteps and noise seeds of each run."""
    given, paths = world(), archive(tmp_path, das=das)
    assert has_masks(Path(paths["masks"]))
    assert has_measurements(Path(paths["measurements"]))
    masks = masks_in(Given("task.masks", paths["masks"]))
    np.testing.assert_array_equal(masks.values, given.masks)
    assert masks.train_ids == [str(i) for i in IDS]
    for kind, factor in (("val", 1), ("gen", 2)):
        found = measurements_in(Given("task.measurements", f"{paths['measurements']}:{kind}")).values
        np.testing.assert_allclose(found, factor * given.measurements, rtol=1e-6)


def test_scores_are_judged_by_an_archive(tmp_path):
    """Claim: one command gives the LDS, ids and noise ceiling that plain arrays of the same numbers give."""
    given, paths = world(), archive(tmp_path / "archive", kinds=["val"])
    plain = saved(tmp_path, mine=given.scores, masks=given.masks, truth=given.measurements)
    settings = (f"task.scores={{mine: {plain['mine']}}}",)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    of_archive, _ = judged(tmp_path / "a", *settings, f"task.masks={paths['masks']}", f"task.measurements={paths['measurements']}")
    of_arrays, _ = judged(tmp_path / "b", *settings, f"task.masks={plain['masks']}", f"task.measurements={plain['truth']}")
    for name in ("mine", "noise ceiling", "exact retraining"):
        assert value(of_archive, name) == pytest.approx(value(of_arrays, name))


def broken(tmp_path, change) -> str:
    """What is said about an archive after a change."""
    paths = archive(tmp_path)
    change(Path(paths["masks"]), Path(paths["measurements"]))
    with pytest.raises(DataError) as error:
        read_truth([paths["measurements"] + ":val"], paths["masks"], False, lambda count: outline([], GIVEN, count))
    return str(error.value)


def missing(name: str):
    return lambda masks, models: next(path for path in (masks / name, masks.parent / name, models / name) if path.exists()).unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (missing("idx-train.pkl"), r"task.masks=.*: has no idx-train.pkl, the ids of all training images: copy it"),
        (missing("sub-idx-3.pkl"), r"task.masks=.*: lacks sub-idx-3.pkl, and has sub-idx-11.pkl: give all subsets from 0 on"),
        (
            missing("ddpm-sub-2-1/e-0-val.pkl"),
            r"ddpm-sub-2-1 has the losses \['e-1-val.pkl'\], and others \['e-0-val.pkl', 'e-1-val.pkl'\]: measure all",
        ),
        (
            lambda masks, _: dump([1000], masks / "sub-idx-2.pkl"),
            r"sub-idx-2.pkl has the image 1000, which idx-train.pkl does not have",
        ),
        (lambda masks, _: dump([0.5], masks / "sub-idx-2.pkl"), r"sub-idx-2.pkl must be a list of whole numbers"),
        (lambda masks, _: dump([[0], [1, 2]], masks / "sub-idx-2.pkl"), r"sub-idx-2.pkl must be a list of whole numbers"),
        (lambda masks, _: dump([7, 7], masks.parent / "idx-train.pkl"), r"idx-train.pkl names a training image twice"),
        (
            lambda _, models: (models / "ddpm-sub-1-0" / "e-0-val.pkl").write_bytes(b"\x80\x04cos\nsystem\n."),
            r"e-0-val.pkl cannot be read \(it uses os.system, .*\): it must be a pickle of lists, numbers and arrays",
        ),
        (lambda _, models: (models / "ddpm-sub-1-0").rename(models / "away"), r"lacks ddpm-sub-1-0: give the models of all"),
        (
            lambda _, models: dump([np.zeros((T, Q + 1))], models / "ddpm-sub-1-0" / "e-0-val.pkl"),
            r"ddpm-sub-1-0 must have, in each file of losses",
        ),
        (
            lambda _, models: [dump([np.zeros((T, Q + 1))], models / "ddpm-sub-1-0" / f"e-{e}-val.pkl") for e in range(NOISES)],
            r"has models with measurements of 4 and 5 queries",
        ),
        (
            lambda _, models: [dump([np.zeros((T, Q))], model / "ddpm-val-errors-10.pkl") for model in models.iterdir()],
            r"has losses at several sets of timesteps \(ddpm-val-errors-10.pkl, e-0-val.pkl, e-1-val.pkl\), .*: keep",
        ),
        (lambda masks, _: ((masks / "sub-idx-2.pkl").unlink(), (masks / "sub-idx-2.pkl").mkdir()), r"sub-idx-2.pkl cannot be read"),
        (lambda _, models: dump(3, models / "ddpm-sub-1-0" / "e-0-val.pkl"), r"ddpm-sub-1-0 must have, in each file of losses"),
    ],
)
def test_archives_that_are_refused(tmp_path, change, message):
    """Claim: the sentence names the setting and the file, and says what to do."""
    assert re.search(message, broken(tmp_path, change))


def test_it_must_be_said_which_queries_are_meant(tmp_path):
    """Claim: an archive with losses of both kinds asks for one."""
    folder = archive(tmp_path)["measurements"]
    with pytest.raises(DataError, match=r"has losses of gen and val queries: say which, as .*:gen or .*:val"):
        measurements_in(Given("task.measurements", folder))
