"""From data to a page: the templates, the style sheet, and how Jinja2 is set up for them.

Jinja2 comes with torch and is imported when a page is rendered, so that ``import fastforget`` stays light.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from ..._text import visible

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, *, script: str = "", **values: Any) -> str:
    """The page of a template. Every value is escaped but those that the template marks as safe: drawings, the style sheet, and the script.

    Args:
        script: a file beside the style sheet, if the page has one. The page's policy lets this text run, by its hash, and no other.
    """
    source = _resource(script) if script else ""
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() if script else ""
    return _environment().get_template(template).render(css=style_sheet(), script=source, script_sha256=digest, **values) + "\n"


def style_sheet() -> str:
    """The rules of ``style.css``."""
    return _resource("style.css")


@cache
def _environment() -> Environment:
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ImportError as error:
        raise ImportError(f"a page needs the package jinja2, which torch requires: {error}. Install it with: pip install jinja2") from error
    loader = FunctionLoader(lambda name: joined(_resource("templates", name)))
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, finalize=_unbroken)


def _resource(*path: str) -> str:
    return files(__package__).joinpath(*path).read_text(encoding="utf-8")


def joined(source: str) -> str:
    """A template without its indentation, since a page shows white space between some tags.

    A line break beside a tag or a Jinja2 statement stands for nothing, one inside a text for a space, an empty line for a line break.

    >>> joined("<p>\\n  two\\n  {{ words }}\\n</p>\\n\\n<hr>")
    '<p>two {{ words }}</p>\\n<hr>'
    """
    paragraphs = re.split(r"\n\s*\n", source.strip())
    beside_tags = (re.sub(r"(>|[%#]\})\s*\n\s*|\s*\n\s*(?=<|\{[%#])", r"\1", paragraph) for paragraph in paragraphs)
    return "\n".join(re.sub(r"\s*\n\s*", " ", paragraph) for paragraph in beside_tags)


def _unbroken(value: Any) -> Any:
    """A text whose every character can be seen, in which a number stays on one line with its % sign, and a mark with its word."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return visible(value, keep="\n\t").replace(" %", "\u00a0%").replace(" *", "\u00a0*")
