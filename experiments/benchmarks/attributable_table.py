"""The table of single queries in a terminal of 80 columns: a line for each query, with a verdict for each training size."""

from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from attribution.images import Images
from experiments.benchmarks.attributable_parts import Finding, of_random_groups
from experiments.metrics.estimate import PERCENT


def attributable_table(findings: Sequence[Finding], images: Mapping[str, Images], data: str) -> Table:
    """The verdicts of ``findings`` and below them t of each size; ``images`` are the queries of each kind."""
    result = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, caption_justify="left", title_justify="left")
    result.title = Text(f"attributable on {data}: can a query be attributed?", style="bold")
    numbers = sorted({finding.images for finding in findings})
    at = {(finding.kind, finding.variant.label, finding.images): finding for finding in findings}
    groups = {finding.images: finding.groups for finding in findings}
    labels = list(dict.fromkeys(finding.variant.label for finding in findings))
    result.add_column(Text("query"), overflow="fold")
    if len(labels) > 1:
        result.add_column(Text("estimator"), overflow="fold")
    for number in numbers:
        sizes = ", ".join(f"{group.count}" for group in groups[number])
        result.add_column(Text(f"N = {number}\nk = {sizes}"), overflow="fold")
    for kind in dict.fromkeys(finding.kind for finding in findings):
        for row in range(len(images[kind])):
            for label in labels:
                if (kind, label, numbers[0]) in at:
                    cells = [_cell(at[kind, label, number], row) for number in numbers]
                    result.add_row(Text(images[kind].name(row)), *([Text(label)] * (len(labels) > 1)), *cells)
    first = findings[0]
    result.caption = (
        f"N training images. top k: the smallest group that does more, when it is removed, than as many random images (one-sided "
        f"p ≤ {first.significance:g}, by Holm's method over the sizes). no: not attributable at these sizes. t: effect over its "
        f"standard error for each k; {first.test.threshold(first.significance):.2f} is p = {first.significance:g}. "
        f"Random groups pass in {PERCENT * of_random_groups(findings):.1f} % of cases."
    )
    return result


def _cell(finding: Finding, query: int) -> Text:
    place = int(finding.smallest[query])
    text = Text("no") if place == len(finding.groups) else Text(f"top {finding.groups[place].count}", style="bold")
    values = " ".join(f"{value:.1f}" for value in finding.test.t[:, query])
    return text.append(f"\nt {values}", style="not bold dim")
