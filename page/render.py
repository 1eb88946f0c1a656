"""Sections into one HTML file that holds its style, its script, its photos and its numbers.

A view is one .py, one .html and one .js file of the same name; page.html and some scripts are shared by all.
"""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from page.packing import packed
from plots.style import colour_table

HERE = Path(__file__).resolve().parent
SHARED = ("packing", "drawing", "controls", "overlay")


def as_html(title, sections):
    """The page of some Sections, as text."""
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True)
    scripts = [f"{name}.js" for name in (*SHARED, *(section.id for section in sections), "page")]
    colours = {name: packed(colour_table(name)) for name in ("inferno", "viridis")}
    return environment.get_template("page.html").render(
        title=title, sections=sections,
        data={"colours": colours, "sections": {section.id: section.data for section in sections}},
        blobs={name: text for section in sections for name, text in section.blobs.items()},
        style=(HERE / "page.css").read_text(encoding="utf-8"),
        script="\n".join((HERE / name).read_text(encoding="utf-8") for name in scripts))
