"""What all pages share: templates in which everything is escaped, the style, and the one script that the policy allows."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from fedleak.printable import printable
from fedleak.report import formats

if TYPE_CHECKING:
    from jinja2 import Environment

_FILTERS = ("decimals", "figure", "scientific", "percent", "count", "duration", "size", "yes_no", "enumerated", "plain")


def render(template: str, context: dict[str, Any]) -> str:
    """Return a page.

    Parameters
    ----------
    template : str
        A file in ``fedleak/report/templates``.
    context : dict
        What the template names; ``script`` and ``script_hash`` are added. Control characters in it are replaced.
    """
    script = asset("sort.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return printable(_environment().get_template(template).render({**context, "script": script, "script_hash": digest}))


def asset(name: str) -> Markup:
    """Return a file of the templates' folder, to be written into a page as it stands."""
    return Markup((Path(__file__).parent / "templates" / name).read_text(encoding="utf-8"))


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # a page is the last that a run writes

    environment = Environment(
        loader=PackageLoader("fedleak.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({name: getattr(formats, name) for name in _FILTERS})
    return environment
