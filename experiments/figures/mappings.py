"""Rows as mappings, for figures that do not take typed rows yet."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.report.row import Row


def mappings(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The flat fields of each row."""
    return [row.to_dict() for row in rows]


def differing_settings(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each row its seed and swept settings, as far as the rows differ in them and they are no fields of the row as well."""
    known = {"benchmark.compare"}.union(*rows) - {"seed"}
    settings = [{"seed": row["seed"]} | {n: v for n, v in (row.get("swept") or {}).items() if n not in known} for row in rows]
    names = dict.fromkeys(name for setting in settings for name in setting)
    differing = [name for name in names if len({str(setting.get(name)) for setting in settings}) > 1]
    return [{name: setting[name] for name in differing if name in setting} for setting in settings]
