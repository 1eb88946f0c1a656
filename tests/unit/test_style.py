"""Fonts of the figures."""

import importlib
import warnings

import matplotlib
import numpy as np
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import fontManager

from plots import style
from plots.confusion import draw_confusion

CAT = "\u732b"


def write_font(path, name, letter):
    """A font that has one letter, a square."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0)), pen.lineTo((0, 700)), pen.lineTo((700, 700)), pen.lineTo((700, 0)), pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({ord(letter): "square"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (800, 0), "square": (800, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": name, "styleName": "Regular", "psName": name})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)


def test_a_class_name_is_written_with_a_system_font_that_has_its_letters(tmp_path, monkeypatch, recwarn):
    write_font(tmp_path / "unifont.ttf", "Unifont", CAT)
    monkeypatch.setattr(fontManager, "ttflist", list(fontManager.ttflist))
    monkeypatch.setitem(matplotlib.rcParams, "font.family", matplotlib.rcParams["font.family"])
    fontManager.addfont(tmp_path / "unifont.ttf")
    importlib.reload(style)
    warnings.simplefilter("always")  # it silences the one that is looked for
    style.save(draw_confusion(np.eye(2), [0, 1], [0, 1], [CAT, "dog"], "two"), tmp_path / "figure.png")
    assert not [warning for warning in recwarn if "missing from" in str(warning.message)]
