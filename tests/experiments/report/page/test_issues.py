"""The issues that a page lists, against brute force."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from experiments.metrics.duplicates import digests, duplicates
from experiments.report.attributions import Attributions
from experiments.report.page import issues
from experiments.report.page.explorer import ranked
from tests.experiments.report.page.made import attributions, images, page


def test_equal_and_nearly_equal_images_are_found(tmp_path):
    """Claim: exact copies are groups, images that differ by a level are pairs, and neither hides the other."""
    train = images(40)
    pixels = train.pixels.copy()
    pixels[7] = pixels[30] = pixels[2]
    pixels[20] = np.clip(pixels[11].astype(int) + 3, 0, 255)
    train = replace(train, pixels=pixels)
    hashes = list(digests(train))
    found = duplicates(train, hashes)
    assert (found.equal, found.near) == ([[2, 7, 30]], [(11, 20)])
    queries = replace(images(3, seed=9), pixels=np.stack([pixels[30], 255 - pixels[0], pixels[5]]))
    assert issues.equal_to_training(queries, hashes) == [(0, 2), (2, 5)]
    text = page(
        tmp_path, Attributions("validation", queries, train, {"kfac": np.random.default_rng(0).random((3, 40))})
    ).read_text()
    assert "3 of 40 training images have an exact copy (1 group)" in text
    assert "1 pair among 40 training images differ" in text
    assert "2 of 3 validation queries are equal to a training image" in text


def test_generally_influential_images_are_found_and_chance_is_not(tmp_path):
    """Claim: an image raised for most queries is found with its count; random scores have none."""
    made = attributions(60, 200)
    made.scores["kfac"][:45, 17] = 10
    [found] = issues.general(ranked(made))
    counts = [sum(17 in np.argsort(-row, kind="stable")[:10] for row in made.scores["kfac"])]
    assert (found.label, found.positions, found.counts, found.top, found.queries) == ("kfac", [17], counts, 10, 60)
    text = page(tmp_path, made).read_text()
    assert f"#{made.train.index[17]} × {counts[0]}" in text
    assert f'href="#view=image&amp;image={made.train.index[17]}"' in text


def test_few_queries_have_no_generally_influential_images():
    """Claim: two queries with the same proponents say nothing about images in general."""
    made = attributions(2, 30)
    made.scores["kfac"][1] = made.scores["kfac"][0]
    assert issues.general(ranked(made)) == []


def test_agreement_is_the_mean_rank_correlation():
    """Claim: the matrix is SciPy's Spearman correlation, averaged over queries."""
    made = attributions(6, 50, ("a", "b", "c"))
    made.scores["b"][:] = np.round(made.scores["a"] + 0.5 * made.scores["b"], 1)  # with ties
    found = issues.agreement(ranked(made))
    assert found is not None
    expected = [
        [np.mean([stats.spearmanr(x, y)[0] for x, y in zip(one, other, strict=True)]) for other in made.scores.values()]  # pyright: ignore
        for one in made.scores.values()
    ]
    np.testing.assert_allclose(found.correlation, expected, atol=1e-9)
    assert found.queries == 6
    assert found.alone == ["c"]
    assert found.disagreeing == []


def test_pairs_that_disagree_are_sorted_and_constant_scores_are_unknown():
    """Claim: pairs below the limit are listed, the most different first; equal scores have no rank correlation."""
    correlation = np.array([[1, 0.9, 0.1, 0.3], [0.9, 1, -0.5, 0.3], [0.1, -0.5, 1, 0.3], [0.3, 0.3, 0.3, 1]])
    found = issues.Agreement(["a", "b", "c", "d"], correlation, 4)
    assert found.alone == []
    assert found.disagreeing == [("b", "c", -0.5), ("a", "c", 0.1)]
    made = attributions(3, 20, ("a", "b"))
    made.scores["b"][:] = 1
    agreement = issues.agreement(ranked(made))
    assert agreement is not None
    assert np.isnan(agreement.correlation[0, 1])
    assert issues.agreement(ranked(attributions(labels=("a",)))) is None


@pytest.mark.parametrize("queries", [1, 20])
def test_nothing_found_is_said(tmp_path, queries):
    """Claim: the page says which checks found nothing."""
    text = page(tmp_path, attributions(queries, 40)).read_text()
    assert "No two of 40 training images are equal." in text
    assert "No training image is among the top 10 of many validation queries." in text
