"""From a `Page` to one HTML file.

Two ways lead a text into the page, both safe: Jinja's autoescape for everything in the markup, and the JSON block for dialogues, from
which page.js makes text nodes, never markup. A content security policy allows one script, ours, by its hash, and
no address on any network.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from pathlib import Path

from verl_steer.bench.lines import whole
from verl_steer.bench.report import images, texts
from verl_steer.bench.report.model import Page


def write_page(page: Page, out: Path, redact: bool = False, text_budget: int = texts.BUDGET) -> Path:
    """Writes `out/index.html`, whole or not at all, mode 0600.

    Args:
        page: What it shows.
        out: Folder.
        redact: Leave out every text of a dialogue and every picture; scores, lengths and names stay.
        text_budget: Characters of dialogue text; longer texts are cut so that all fit.

    Returns:
        The file.
    """
    used = [] if redact else [sha256 for d in page.dialogues for shown in d.images for sha256 in shown]
    block = texts.block(page, images.embed(used, page.pictures, out), redact, text_budget)
    html = render(page, texts.script_safe(block), redact)
    path = out / "index.html"
    # A lone surrogate of a model's text has no UTF-8.
    whole(path, html.encode("utf-8", "replace"))
    return path


def render(page: Page, block: str, redact: bool) -> str:
    """The page's HTML; `block` is script-safe JSON."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    folder = resources.files("verl_steer.bench.report")
    style, script, template = (
        folder.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js", "page.html")
    )
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"shade": shade, "heat": heat}
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.from_string(template).render(
        page=page,
        redact=redact,
        style=Markup(style),  # our own file
        script=Markup(script),
        digest=digest,
        block=Markup(block),  # `script_safe` has left no sign of markup in it
        svg=Markup,
    )


# The seven colours of page.css, worst first.
RAMP = (
    (180, 35, 24),
    (207, 68, 56),
    (240, 161, 132),
    (248, 207, 174),
    (249, 232, 184),
    (191, 227, 210),
    (31, 122, 102),
)


def shade(level: float | None) -> int:
    """A place on a scale in [0, 1] as one of the seven colours, 0 the worst."""
    return -1 if level is None else min(6, max(0, round(level * 6)))


def heat(level: float) -> str:
    """The same between the colours, with a readable ink, as CSS."""
    place = min(max(level, 0.0), 1.0) * 6
    low = min(int(place), 5)
    mixed = [round(a + (b - a) * (place - low)) for a, b in zip(RAMP[low], RAMP[low + 1], strict=True)]
    bright = 0.299 * mixed[0] + 0.587 * mixed[1] + 0.114 * mixed[2]
    return f"background:rgb({mixed[0]},{mixed[1]},{mixed[2]});color:{'#1d2939' if bright > 128 else '#fff'}"
