"""Pages that load nothing: style, script and pictures are inline, each picture once.

Pictures are backgrounds: a style rule for each, named by its content, serves all places that show
it. Ids, titles and other texts come from users of the shop, so all of them are escaped, and the
Content-Security-Policy admits one script, by its hash.
"""

import base64
import hashlib
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from visrec.evaluation.report_content import ItemCard
from visrec.evaluation.table import metric_label
from visrec.text import show_controls


def render_page(template: str, items: Iterable[ItemCard], **content: object) -> str:
    """A page as one HTML text, which can be encoded as UTF-8.

    Args:
        template: its file, which extends `page.html`.
        items: whatever has a picture on the page.
        content: what the template shows.
    """
    page = (
        _environment()
        .get_template(template)
        .render(
            style=_part("page_style.html"),
            script=_part("page_script.html"),
            script_hash=_script_hash(),
            pictures={picture_class(i): _data_uri(i.thumbnail) for i in items if i.thumbnail},
            **content,
        )
    )
    # A Python string may hold half of a surrogate pair, which UTF-8 cannot encode.
    return page.encode("utf-8", "replace").decode()


def picture_class(item: ItemCard) -> str:
    """The name of the style rule with an item's picture; the same picture has the same name."""
    return f"p-{hashlib.sha256(item.thumbnail or b'').hexdigest()[:12]}"


def show_code(text: str) -> Markup:
    """Escapes a text, and shows what is between backticks as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(show_controls(text)))))


def format_moment(text: str) -> str:
    """A time of a record, as people read it."""
    try:
        return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return text


def format_score(score: float) -> str:
    """A score with the digits that tell neighbours apart."""
    return f"{score:.1f}" if abs(score) >= 100 else f"{score:.3f}"


def _data_uri(webp: bytes) -> Markup:
    return Markup("data:image/webp;base64," + base64.b64encode(webp).decode())


@cache
def _part(name: str) -> Markup:
    """The style or the script, with its tags."""
    loader = _environment().loader
    if loader is None:
        raise ValueError("the environment has no loader")
    return Markup(loader.get_source(_environment(), name)[0].strip())


@cache
def _script_hash() -> str:
    """The hash of the script between its tags, as a Content-Security-Policy names it."""
    text = str(_part("page_script.html")).removeprefix("<script>").removesuffix("</script>")
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("visrec", "evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "visible": show_controls,
        "label": metric_label,
        "score": format_score,
        "code": show_code,
        "moment": format_moment,
        "picture_class": picture_class,
    }
    return environment
