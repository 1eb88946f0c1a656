"""Sections into one HTML file that holds its style, its script, its pictures and its numbers."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from page.packing import colours

HERE = Path(__file__).resolve().parent


def as_html(title, sections):
    """The page of some Sections, as text."""
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    data = {"colours": {name: colours(name) for name in ("inferno", "viridis")},
            "sections": {section.id: section.data for section in sections}}
    return environment.get_template("template.html").render(
        title=title, sections=sections, data=data, blobs={name: text for one in sections for name, text in one.blobs.items()},
        style=(HERE / "style.css").read_text(encoding="utf-8"), script=(HERE / "script.js").read_text(encoding="utf-8"))
