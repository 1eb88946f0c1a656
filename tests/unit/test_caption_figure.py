import numpy as np
import pytest
from PIL import Image

from models import catr
from plots import captions

LONG = ["a", "antidisestablishmentarianism", "##s", 40 * "W", "$x_1^2$", "зонтик", "[end]"]


@pytest.mark.parametrize("count, size", [(1, (1000, 200)), (7, (200, 1000)), (40, (300, 300))], ids=str)
def test_no_text_overlaps_another_or_leaves_the_page(tmp_path, monkeypatch, count, size):
    figures = []
    monkeypatch.setattr(captions, "save", lambda figure, path: figures.append(figure))  # tested below
    width, height = size
    grid = [max(1, side // 60) for side in (height, width)]
    titles = [LONG[i % len(LONG)] for i in range(count)]
    photo, maps = np.full((height, width, 3), 90, np.uint8), np.full((count, *grid), 0.0123)
    captions.draw_caption(photo, (-8, -8, width, height), maps, titles, [0.5] * count, " ".join(titles),
                          "name_" * 30, "cross-attention of a layer, at length, " * 3, tmp_path / "f.png")
    figure, = figures
    texts = figure.subfigs[0].texts
    ticks = [tick for axes in figure.axes for tick in axes.get_xticklabels() if tick.get_text()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in [*texts, *ticks]]
    boxes += [("panel", axes.get_window_extent()) for axes in figure.axes]
    assert len(ticks) >= 2 and len(texts) == 3 + 2 * count and len(figure.axes) == count + 2
    page = figure.bbox
    for i, (text, box) in enumerate(boxes):
        assert page.x0 <= box.x0 and box.x1 <= page.x1 - 0.3 * captions.DPI, f"{text} leaves the page"
        assert page.y0 <= box.y0 and box.y1 <= page.y1, f"{text} leaves the page"
        for other, its in boxes[i + 1:]:
            assert not box.overlaps(its), f"{text} touches {other}"
    for axes in figure.axes[:count]:
        assert axes.bbox.height / axes.bbox.width == pytest.approx(height / width, rel=1e-3)


def draw_text(monkeypatch, caption):
    """The lines of a caption on its figure, as they are drawn, and their box in pixels."""
    figures = []
    monkeypatch.setattr(captions, "save", lambda figure, path: figures.append(figure))
    photo = np.zeros((200, 300, 3), np.uint8)
    captions.draw_caption(photo, (0, 0, 300, 200), np.ones((1, 2, 3)), ["a"], [0.5], caption, "heading",
                          "label", "f.png")
    text = figures[0].subfigs[0].texts[1]
    lines = [text._preprocess_math(line) for line in text._get_wrapped_text().split("\n")]
    assert not any(is_math for _, is_math in lines)
    return [line for line, _ in lines], text.get_window_extent()


def test_captions_are_wrapped_between_words_and_in_words_without_a_space_to_break_at(monkeypatch):
    words = "a girl in a yellow raincoat holds a red umbrella beside a bench on a rainy street".split()
    lines, box = draw_text(monkeypatch, " ".join(words))
    assert len(lines) == 2 and " ".join(lines).split() == words
    for text in (40 * "W", "$x_1^2$ costs " * 9, 60 * "\u4e00", "\u4e00\u4e8c " * 25,
                 3 * ("\u8d64\u3044\u5098" * 9 + "\u3002 ")):
        lines, box = draw_text(monkeypatch, text)
        assert "".join("".join(lines).split()) == "".join(text.split()), "no letter is lost"
        assert box.x1 <= (captions.PAGE[0] - captions.MARGIN) * captions.DPI + 1, text
        assert len(lines) > 1 and min(map(len, lines[:-1])) > 8, "lines are full"


@pytest.mark.parametrize("size, grid", [((300, 200), (6, 8)), ((120, 300), (8, 4)), ((1400, 600), (4, 8))],
                         ids=str)
def test_the_brightest_spot_is_the_centre_of_the_hot_cell(drawn, tmp_path, size, grid):
    """The cell's centre is pixel 16 i of the photo as the model sees it, whose longer side is 128."""
    config = catr.small_config(9)
    row, column = 1, grid[1] - 2
    maps = np.zeros((2, *grid), np.float32)
    maps[0, row, column] = 1
    maps[1, 0, 0] = 0.25
    width, height = size
    photo = np.full((height, width, 3), 128, np.uint8)
    captions.draw_caption(photo, catr.grid_box(size, grid, config), maps, ["hot", "cool"], [0.5, 0.5], "", "",
                          "", tmp_path / "f.png")
    picture = np.asarray(Image.open(tmp_path / "f.png").convert("RGB")).astype(int)
    small = catr.resized(size, config.longer_side)
    panels = [axes for axes in drawn[0].axes if len(axes.images) == 2]
    for axes, (i, j) in zip(panels, ((row, column), (0, 0)), strict=True):
        x, y = ((16 * index + 0.5) * full / seen for index, full, seen in zip((j, i), size, small))
        x0, y0, x1, y1 = (round(value) for value in axes.bbox.extents)
        y0, y1 = picture.shape[0] - y1, picture.shape[0] - y0
        inside = picture[y0 + 2:y1 - 2, x0 + 2:x1 - 2]  # without the frame
        expected = y / height * axes.bbox.height - 2, x / width * axes.bbox.width - 2
        spot = inside[tuple(max(0, min(int(at), side - 1)) for at, side in zip(expected, inside.shape))]
        if (i, j) == (row, column):
            green = inside[:, :, 1]  # grows with the attention
            at = np.argwhere(green >= green.max() - 1).mean(0)
            cell = 16 * axes.bbox.width / small[0]
            assert np.abs(at - expected).max() < 0.1 * cell, "in the middle of its cell"
            assert spot[0] > 220 and spot[1] > 200, "the scale's top"
        else:
            assert spot[1] < 110 and np.ptp(spot) > 30, "half way up the scale that both share"
        far = inside[-1, 0 if (i, j) == (row, column) else -1]
        assert np.abs(far - 128).max() < 3, "no attention: the photo as it is"
