"""benchmark=normalization: rows, references, figures, refusals; the figure with variants beside each other."""

import numpy as np
import pytest

from attribution.images import Images
from experiments.figures import side_by_side
from tests.experiments.tasks.test_cli import TINY, rows, run

SMALL = [
    *TINY,
    "estimator=retrac",
    "benchmark=normalization",
    "diffusion.sampler.steps=4",
    "benchmark.k=[5]",
    "benchmark.n=4",
    "benchmark.strengths=[0,0.5,1]",
]
QUERIES = ["benchmark.queries.validation.n=8", "benchmark.queries.generated.n=6"]


@pytest.mark.slow
def test_normalization_on_the_command_line(tmp_path):
    """Claim: each strength, TracIn and ReTrac have a share with interval and levels; differences are paired: at λ = 1 and one
    checkpoint guided is ReTrac, and the difference is exactly 0."""
    out = tmp_path / "out"
    run(
        tmp_path,
        *SMALL,
        *QUERIES,
        "estimator.checkpoints=[20]",
        "optimizer.lr=1e-3",
        "trainer.lr_schedule=constant",
        f"hydra.run.dir={out}",
    )
    found = [row for row in rows(out) if row["benchmark"] == "normalization"]
    for kind in ("validation", "generated"):
        here = [row for row in found if row["queries"] == kind]
        shares = {
            (row["estimator"], (row.get("swept") or {}).get("estimator.strength")): row for row in here if "difference" not in row
        }
        assert shares.keys() == {("retrac", None), ("tracin", None), ("guided", 0), ("guided", 0.5), ("guided", 1)}
        for row in shares.values():
            assert row["metric"] == "distinct_share@5"
            assert 0.25 <= row["low"] <= row["value"] <= row["high"] <= 1
            assert row["random"] == pytest.approx(40 * (1 - (1 - 5 / 40) ** 4) / 20)
        assert shares["guided", 1]["value"] == shares["retrac", None]["value"]
        differences = {row["estimator"]: row for row in here if "difference" in row}
        assert len(differences) == 6
        assert [differences["guided strength=1 − retrac"][name] for name in ("value", "low", "high")] == [0, 0, 0]
        expected = shares["guided", 0]["value"] - shares["tracin", None]["value"]
        assert differences["guided strength=0 − tracin"]["value"] == pytest.approx(expected)
        assert (out / f"side_by_side_{kind}.png").stat().st_size > 5000
    assert (out / "distinct_share_5_over_strength.png").stat().st_size > 5000
    assert not any(row["metric"].startswith("precision") for row in found), "digits have ten labels, not two sources"


@pytest.mark.slow
def test_two_sources_are_traced(tmp_path):
    """Claim: on data of two labels precision@k is reported for the queries of each, beside the share of its source in the data."""
    out = tmp_path / "out"
    data = ["data=patches_digits", "data.patches=30", "data.zeros=10", "data.validation_patches=8", "data.validation_zeros=8"]
    tiny = [setting for setting in SMALL if not setting.startswith("data.")]
    run(tmp_path, *data, *tiny, "benchmark.queries.validation.n=16", "benchmark.queries.generated.n=6", f"hydra.run.dir={out}")
    found = [row for row in rows(out) if row["metric"] == "precision@5"]
    # Generated images have no label.
    assert {(row["queries"], row["random"]) for row in found if "random" in row} == {
        ("validation source 0", 0.75),
        ("validation source 1", 0.25),
    }
    assert {row["queries"] for row in found} == {"validation source 0", "validation source 1"}
    assert len([row for row in found if "difference" in row]) == 2 * 6
    assert (out / "tracing_5_over_strength.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["benchmark.compare=[tracin]"], "estimator=guided"),
        (["benchmark.strengths=[0,2]"], "benchmark.strengths"),
        (["benchmark.strengths=[1]"], "benchmark.strengths"),
        (["benchmark.k=[41]"], "benchmark.k"),
        (["benchmark.n=9"], "benchmark.n=9"),
        (["benchmark.rows=0"], "benchmark.rows=0"),
        (["estimator=guided", "estimator.strength=2"], "estimator.strength=2"),
        (["estimator=guided", "estimator.timestep=0"], "estimator.timestep=0"),
    ],
)
def test_bad_settings_are_a_sentence(tmp_path, capfd, arguments, said):
    """Claim: what cannot be is refused before anything is trained, by the setting's name."""
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, *SMALL, *QUERIES, *arguments, f"hydra.run.dir={tmp_path / 'out'}")
    assert said in f"{ended.value.code}{capfd.readouterr().err}"
    assert not list((tmp_path / "store").glob("TrainedModel/*"))


def images(n, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (n, 1, 8, 8)).astype(np.uint8)
    return Images(pixels, np.arange(n), np.full(n, -1))


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_side_by_side_shows_the_largest_first():
    """Claim: every query with the ids of its top images of each variant, in order; boxes where asked, explained once."""
    scores = {"a": np.arange(24.0).reshape(2, 12), "b": -np.arange(24.0).reshape(2, 12)}
    figure = side_by_side(images(2, 1), images(12), scores, [1, 0], 3, {"a": {11}, "b": {5}}, "boxed means this")
    shown = texts(figure)
    assert [text for text in shown if text.startswith("#")] == ["#1", "#0", *["#11", "#10", "#9"] * 2, *["#0", "#1", "#2"] * 2]
    assert {"a", "b", "boxed means this", "query"} <= set(shown)
    red = [patch for patch in figure.axes[0].patches if patch.get_linewidth() == 2.5]
    assert len(red) == 2


def test_side_by_side_says_what_it_leaves_out():
    """Claim: too many variants or queries are left out in the open."""
    scores = {f"v{i}": np.random.default_rng(i).random((60, 12)) for i in range(9)}
    figure = side_by_side(images(60, 1), images(12), scores, range(60), 6)
    said = " ".join(texts(figure))
    assert "more queries are left out" in said
    assert "3 of 9 variants are left out" in said
    assert figure.get_figwidth() <= 16
    assert figure.get_figheight() <= 30
