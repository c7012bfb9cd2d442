"""One sentence each on metrics, reference levels and reference lines of tables."""

import re
from collections.abc import Sequence

from experiments.report.row import Row
from experiments.report.tables import REFERENCES, Layout, words

LEVELS = {
    "random": "what scores without information give on average; a thin line.",
    "maximum": "the largest value that is possible; a dotted line.",
    "ceiling": "about what a perfect predictor would reach, as what it predicts is measured with noise; a dashed line.",
}
"""What each reference level is."""

_METRICS = {
    r"lds_%": "Spearman's correlation, in per cent, between the change that scores predict when a random subset of the training "
    "images is left out and the change that retraining without it shows; averaged over queries. Higher is better.",
    r"lds_%_of_ceiling": "the LDS in per cent of the noise ceiling. The interval has the uncertainty of both. Higher is better.",
    r"lds_%_of_varied_sizes": "the LDS on subsets of different sizes. τ = 1 is that of counting the images that are left out.",
    r"lds_%_without_size": "what is left of it without the effect of size: the partial rank correlation. Higher is better.",
    r"deletion_%@\d+": "how much the measurement of a query rises when its top images are removed and the model is trained again, "
    "in per cent of the measurement under models of all images. Higher is better; the random level is removal at random.",
    r"insertion_%@\d+": "how much lower the measurement of a query is under a model of its top images only than under models of as "
    "many random ones, in per cent. Higher is better; 0: no better than random images.",
    r"planted_recall@\d+": "the share of the near-copies of a query, planted into the training set, that are among its top images.",
    r"planted_average_precision": "the precision at each near-copy of the query in the ranking, averaged. 1: they are all on top.",
    r"spearman_between_trainings": "the rank correlation of the scores of all training images with those of another training. "
    "1 for scores that do not depend on the model.",
    r"attributable_%@.*": "the share of queries that get worse by more than noise without their top images, of this number and of "
    "every larger one. The random level is the share that would be so by chance.",
    r"effect_%@.*": "how much more the measurement of a query rises without its top images than without as many random ones, in "
    "per cent of the measurement under models of all images; a mean over queries.",
    r"signal_to_noise@.*": "this effect on a query divided by its standard error; the median over queries.",
    r"lds_%_held_out_damping": "the LDS at the damping that is best on the other half of the subsets. Higher is better.",
    r"lds_%_by_all": "the LDS at this timestep if scores over all timesteps predict it. Higher is better.",
    r"lds_%_−_by_all": "what predicting at the timestep itself adds to the LDS.",
    r"same_t|neighbors|farther|neighbors_−_farther|later_−_earlier_t": "means over the matrix of LDS by pair of (predicted, "
    "measured) timesteps.",
    r"distinct_share@\d+": "the share of different training images among the top k of a set of queries. 1: every query has "
    "proponents of its own; the random level: as if they were drawn.",
    r"split_half_spearman": "the rank correlation of scores from one half of the query's draws with those from the other half. "
    "1: more draws would change nothing.",
    r"precision@\d+": "the share of a query's top k training images that come from the source or class of the query. "
    "Higher is better.",
    r"auroc": "the probability that an image that should rank high has a larger score than one that should not. Higher is better.",
    r"average_precision": "the precision of the ranking, averaged over the ranks of the images that should rank high. "
    "Higher is better.",
    r"outlier_share@\d+": "the share of outliers among the k training images with the largest self-influence.",
    r"share_of_images": "the share of queries that the classifier by pixels assigns to this source.",
    r"recall_on_held_out": "how often the classifier by pixels is right on held-out images of this source.",
    r"delta_measurement@.*": "how much the measurement of a query rises when its top training images are removed and the model is "
    "trained again. Above 0: the query became worse; higher is better for an estimator.",
    r"image_l2@.*": "the distance between a query and the image that the retrained model generates from the same noise.",
    r"embedding_distance@.*": "1 − cosine between the embeddings of a query and of the image that the retrained model generates.",
    r"spearman|pearson": "the correlation of compressed with uncompressed scores of a query; 1: compression changes nothing.",
    r"spearman_with_all": "the rank correlation of scores from few timesteps with those from all. Higher is better.",
    r"times_faster": "how many times fewer passes these scores take.",
    r"norm_explained_by_timestep": "the share of the variance of gradient norms that the timestep explains.",
    r"largest_over_median_norm": "the largest gradient norm of an image over timesteps, divided by its median.",
    r"mean_t_max": "the mean timestep at which an image has its largest gradient norm.",
    r"algorithm_1_spearman": "the rank correlation of an image's norm with the distance of its training timestep from the timestep "
    "of its largest norm (ReTrac, Algorithm 1). Negative: images trained near their largest norm rank high.",
    r"algorithm_1_slope": "the slope of the line through ranks of norms over that distance.",
    r"score_with_norm_spearman": "the rank correlation of |scores| with gradient norms. 1: norms decide who is influential.",
    r"rank_rise_%": "how far an image rises in rank, in per cent of the training set, if another timestep replaces that "
    "of training.",
    r"most_frequent_in_top_\d+": "the share of queries that have the same, most frequent image among their top k.",
    r"training_loss_of_last_epoch": "the mean training loss over the steps of the last epoch.",
    r"(spearman|pearson)_with_retraining_%": "the correlation, over sets of removed images, of the predicted change of a "
    "measurement with that of the same training run without them; in per cent, averaged over queries. Higher is better.",
    r"(spearman|pearson)_with_metagradient_%": "the same with the change that the exact derivative of training predicts.",
    r"error_with_(retraining|metagradient)_%": "the distance of predicted from true changes in per cent of the norm of the true "
    "ones. It has a meaning for scores with a scale only.",
    r"scaled_error_with_(retraining|metagradient)_%": "the same after the best scale for each query. Lower is better; at most 100.",
    r"agreement_%": "the correlation over random halves of predictions from these draws with those that endless draws of all "
    "timesteps would give, as expected from groups of draws. Nothing was retrained. Higher is better.",
    r"weight_share\[.*\]": "the share of the total weight of a measurement that these timesteps have.",
}
"""What metrics are, by regular expressions of their names."""

_SUBJECTS = {
    "exact retraining": "the measurements of one training seed, predicted by the mean of the others. It is no upper bound.",
    "random removal": "what removing as many images at random does. An estimator that does not exceed it has found nothing.",
    "random group": "each random group in the place of a query's own: how often noise is called attributable.",
    "nothing removed": "training again on all images.",
    "rounding": "the same training run once more on all images, in another order of sums.",
    "τ = 1": "equal scores, which count the images that a subset leaves out.",
}
"""What lines are that stand for no estimator."""


_FIGURES = {
    r"lds": "LDS of each estimator with its interval, and the noise ceiling",
    r"proponents(_.*)?": "queries with the training images that have the largest, nearly zero and smallest scores",
    r"training": "loss and learning rate of every training step",
    r"samples": "images that the model generates",
    r"distinct_share": "distinct share of the top k of each estimator, with its interval",
    r"over_.*": "values of the benchmark over a setting",
    r"bins_.*": "values of the benchmark by timesteps of query and training image",
    r"verdict": "all parts of the verdict for each estimator, with intervals",
    r"attributable": "share of queries that can be attributed, over the number of training images",
    r"effects_.*": "effect of removing a query's top images, in units of the smallest effect beyond noise",
    r"counterfactual": "rise of the measurement over the share of images that were removed",
    r"regenerated": "distances of regenerated images over the share of images that were removed",
    r"regenerated_.*": "queries generated again by models without their top images",
    r"precision": "share of the query's own source among the top k",
    r"outlier_share": "outliers among the k largest self-influences",
    r"self_influence_.*": "training images with the largest self-influence",
    r"side_by_side_.*": "proponents at several strengths of normalization, side by side",
    r"norm_.*": "gradient norms by timestep",
    r"algorithm_1": "ranks of gradient norms over the distance of the training timestep from that of the largest norm",
    r"rank_rise": "rise in rank when another timestep replaces that of training",
    r"compression": "correlation of compressed with uncompressed scores",
    r"sparse_timesteps": "agreement of scores from few timesteps with those from all, and their cost",
    r"agreement_\d+": "expected agreement of scores from windows of timesteps with those from all timesteps",
    r"loss_weights": "weight of each timestep in the measurements",
    r"linearization": "agreement of predicted changes with retraining and with the exact derivative, over sizes of removed sets",
    r"lds_by_timestep": "LDS by timestep of the loss",
}
"""What figures show, by regular expressions of their names."""


def figure_caption(name: str) -> str:
    """The name of a figure in words, and what it shows if that is known."""
    text = next((text for pattern, text in _FIGURES.items() if re.fullmatch(pattern, name)), None)
    return words(name) + (f": {text}" if text else "")


def metric_meaning(metric: str) -> str | None:
    """The sentence about a metric; None if there is none."""
    return next((text for pattern, text in _METRICS.items() if re.fullmatch(pattern, metric)), None)


def meanings(layouts: Sequence[Layout]) -> list[tuple[str, str]]:
    """What the columns, the reference lines and the levels of tables mean: pairs of a term and a sentence.

    Columns that differ in a number only, such as ``precision@10`` and ``precision@50``, have one sentence.
    """
    found: dict[str, list[str]] = {}
    for metric in dict.fromkeys(metric for layout in layouts for metric in layout.metrics):
        if (text := metric_meaning(metric)) is not None:
            found.setdefault(text, []).append(words(metric))
    terms = [(", ".join(names), text) for text, names in found.items()]
    terms += _lines([row for layout in layouts for line in layout.lines for row in line.rows.values()])
    return terms + [(name, LEVELS[level]) for level, name in REFERENCES.items() if any(level in one.levels for one in layouts)]


def captions(layouts: Sequence[Layout]) -> list[tuple[str, str]]:
    """The captions of tables as pairs of a term and a sentence, such as "in brackets" and the kind of interval."""
    lines = dict.fromkeys(line for layout in layouts for caption in layout.captions for line in caption.splitlines())
    return [(term, text) for term, _, text in (line.partition(": ") for line in lines)]


def _lines(rows: Sequence[Row]) -> list[tuple[str, str]]:
    present = dict.fromkeys(row.subject.name for row in rows if row.minus is None)
    terms = [(name, _SUBJECTS[name]) for name in present if name in _SUBJECTS]
    if any(name.endswith(", for another query") for name in present):
        terms.append(("…, for another query", "what removing the top images of another query does to a query."))
    if any(row.minus is not None for row in rows):
        terms.append(("a − b", "a difference on the same resamples: an interval without 0 says that the two differ."))
    return terms
