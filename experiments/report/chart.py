"""The chart of a W&B dashboard that W&B has no panel for: metrics of estimators with their intervals, as Vega-Lite."""

import hashlib
import json
from typing import Any

FIELDS = {name: name for name in ("estimator", "metric", "queries", "value", "low", "high", "ceiling")}
"""The fields of the chart and the columns of the table ``rows`` that fill them."""


def intervals() -> dict[str, Any]:
    """The specification: an interval and a point for each row of the metric ``${string:metric}``, a panel for each kind of queries.

    Runs have their own colors, and a tick is the noise ceiling. W&B fills ``${field:..}`` and ``${string:..}`` in.
    """
    y = {"field": "${field:estimator}", "type": "nominal", "title": None, "sort": None}
    color = {"field": "name", "type": "nominal", "title": "run"}
    offset = {"field": "name"}
    x = {"type": "quantitative", "title": "${string:title}", "scale": {"zero": False}}
    interval = {"x": {"field": "${field:low}", **x}, "x2": {"field": "${field:high}"}}
    names = ("estimator", "queries", "value", "low", "high", "ceiling")
    tooltip = [{"field": f"${{field:{name}}}", "title": name} for name in names]
    shared = {"y": y, "yOffset": offset, "color": color}
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "data": {"name": "wandb"},
        "transform": [
            # The rows of differences are called "a − b".
            {
                "filter": "datum['${field:metric}'] === '${string:metric}' && indexof(datum['${field:estimator}'], ' − ') < 0"
                " && isValid(datum['${field:value}'])"
            }
        ],
        "facet": {"column": {"field": "${field:queries}", "type": "nominal", "title": None}},
        "spec": {
            "width": 260,
            "layer": [
                {"mark": {"type": "rule", "strokeWidth": 2}, "encoding": {**shared, **interval}},
                {
                    "mark": {"type": "point", "filled": True, "size": 60},
                    "encoding": {**shared, "x": {"field": "${field:value}", **x}, "tooltip": tooltip},
                },
                {
                    "mark": {"type": "tick", "color": "#999999", "thickness": 2},
                    "encoding": {"y": y, "x": {"field": "${field:ceiling}", **x}},
                },
            ],
        },
    }


def name() -> str:
    """The name of the chart in an account. Another specification has another name, because W&B cannot replace a chart."""
    text = json.dumps(intervals(), sort_keys=True)
    return f"metric-with-intervals-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
