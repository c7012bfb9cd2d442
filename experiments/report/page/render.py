"""From values to HTML: every text is escaped, and nothing is loaded from elsewhere."""

import base64
import functools
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: Any) -> str:
    """The HTML of ``template`` with ``values``.

    The page's Content-Security-Policy allows its own script, by its hash, and no other: text that slipped through the escaping
    would still not run. It forbids all connections.
    """
    script, style = ((_TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template(template)
        .render(
            script=Markup(script),
            style=Markup(style),
            script_hash=f"sha256-{digest}",
            **values,
        )
    )


@functools.cache
def _environment() -> Environment:
    loader = PackageLoader("experiments.report.page", "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
