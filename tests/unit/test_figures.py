import numpy as np
import pytest
import torch
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

from datasets import transforms
from interpret.attention import attention_maps
from models import vit
from plots import style
from plots.attention import ModelView, bar_label, draw_rows, show_map
from plots.posembed import draw_similarities, mosaic


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    monkeypatch.setattr(style, "DPI", 80)


def test_the_mosaic_puts_each_map_in_its_place():
    similarity = np.random.default_rng(0).uniform(-1, 1, (3, 4, 3, 4)).astype(np.float32)
    image, gap = mosaic(similarity)
    assert gap == 1 and image.shape == (3 * 4 - 1, 4 * 5 - 1)
    for i in range(3):
        for j in range(4):
            assert np.array_equal(image[i * 4:i * 4 + 3, j * 5:j * 5 + 4], similarity[i, j])
    assert np.isnan(image).sum() == image.size - similarity.size


def statistics(value):
    return {"same_row": value, "same_column": 0.2, "elsewhere": -0.1, "by_distance": np.array([0.5, 0.1]),
            "nearest_adjacent": 0.5}


def test_similarities_share_one_scale_and_are_labelled(drawn, tmp_path):
    similarities = [np.full((5, 6, 5, 6), value, np.float32) for value in (0.1, 0.9)]
    random = {name: np.stack([np.add(value, shift) for shift in (-0.01, 0.02)])
              for name, value in statistics(0.0).items()}
    draw_similarities(similarities, [statistics(0.3), statistics(0.4)], {"2 random embeddings": random},
                      ["one", "two"], tmp_path / "figure.png")
    upper, lower = drawn[0].subfigs
    *panels, bar = upper.axes
    assert [axes.get_title() for axes in panels] == ["one", "two"]
    assert all(axes.images[0].get_clim() == (-1, 1) for axes in panels)
    for axes, value in zip(panels, (0.1, 0.9)):
        assert np.nanmax(axes.images[0].get_array()) == pytest.approx(value)
        assert [tick.get_text() for tick in axes.get_xticklabels()] == list("012345")
        assert axes.get_xticks()[2] == 2 * 7 + 2.5, "the number stands under the middle of its column of maps"
    assert bar.get_ylim() == (-1, 1) and "cosine similarity" in bar.get_ylabel()

    means, curve = lower.axes
    heights = [[patch.get_height() for patch in container] for container in means.containers]
    assert heights[:2] == [[0.3, 0.2, -0.1], [0.4, 0.2, -0.1]] and heights[2] == pytest.approx([0.03] * 3)
    assert [patch.get_y() for patch in means.containers[2]] == pytest.approx([-0.01, 0.19, -0.11])
    one, two, zero = curve.lines
    assert one.get_xdata().tolist() == [1, 2] and two.get_ydata().tolist() == [0.5, 0.1]
    assert zero.get_ydata() == [0, 0]
    assert [text.get_text() for text in lower.legends[0].get_texts()] == [
        f"{name}\nmost similar one adjacent: {share}%" for name, share in (
            ("one", "50.0"), ("two", "50.0"), ("2 random embeddings", "50.5"))]


def test_the_map_lies_on_the_box_and_the_rest_is_dimmed(drawn, tmp_path):
    photo = np.full((60, 100, 3), 200, np.uint8)
    attention = np.zeros((4, 4), np.float32)
    attention[1, 2] = 0.5
    view = ModelView(photo, (20, 0, 80, 60))
    draw_rows([(view, attention, "a heading")], "attention", tmp_path / "figure.png")
    figure = drawn[0]
    photo_axes, map_axes, over_axes, bar = figure.axes
    assert map_axes.images[0].get_extent() == over_axes.images[1].get_extent() == [20, 80, 60, 0]
    assert map_axes.images[0].get_clim() == over_axes.images[1].get_clim() == (0, 0.5)
    assert np.array_equal(map_axes.images[0].get_array(), attention)
    for axes in (photo_axes, map_axes, over_axes):
        assert axes.get_xlim() == (0, 100) and axes.get_ylim() == (60, 0)
    assert photo_axes.get_title() == "a heading" and bar.get_ylim() == (0, 0.5)
    assert figure.texts[0].get_text() == "attention"

    # what a reader sees
    colour = colours_of(over_axes, tmp_path / "figure.png")
    assert np.allclose(colour(10, 30), 200 * 0.35, atol=2) and np.allclose(colour(90, 30), 200 * 0.35, atol=2)
    assert np.allclose(colour(25, 50), 200, atol=2), "no attention: the photo as it is"
    assert np.abs(colour(57.5, 22.5) - 200).max() > 40, "the centre of row 1, column 2 of 4 on 20..80"


def colours_of(axes, path):
    """A function from a photo's (x, y) to the colour there in a saved picture of the axes, ints (3,)."""
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)

    def colour(x, y):
        column, row = axes.transData.transform((x, y)) * style.DPI / axes.figure.dpi
        return picture[picture.shape[0] - 1 - int(row), int(column)]

    return colour


def test_rows_share_one_scale_in_the_order_given(drawn, tmp_path):
    views = [ModelView(np.zeros((40, 60, 3), np.uint8), (0, 0, 60, 40)),
             ModelView(np.zeros((90, 30, 3), np.uint8), (-5, 20, 35, 60))]
    maps = [np.full((2, 3), 0.2), np.full((4, 4), 0.6)]
    rows = [(views[0], maps[0], "first"), (views[1], maps[1], "second")]
    draw_rows(rows, "", tmp_path / "f.png")
    panels = drawn[0].axes[:6]
    assert [axes.get_title() for axes in panels[::3]] == ["first", "second"]
    assert all(panels[i].images[-1].get_clim() == (0, 0.6) for i in (1, 2, 4, 5))
    assert panels[4].images[0].get_interpolation() == "nearest", "its patches, alone"
    assert panels[5].images[1].get_interpolation() == "bilinear", "over the photo"
    assert panels[3].get_xlim() == (-5, 35) and panels[3].get_ylim() == (90, 0), "with the padding"

    draw_rows(rows, "", tmp_path / "f.png", scale_each=True)
    *panels, first, second = drawn[1].axes
    assert [panels[i].images[-1].get_clim() for i in (1, 2, 4, 5)] == [(0, 0.2)] * 2 + [(0, 0.6)] * 2
    for bar, row, top in ((first, panels[1], 0.2), (second, panels[4], 0.6)):
        (_, low), (_, high) = bar.get_position().get_points()
        (_, row_low), (_, row_high) = row.figure.transFigure.inverted().transform(row.bbox)
        assert bar.get_ylim() == (0, top) and row_low - 0.01 < low < high < row_high + 0.01, "beside its row"


@pytest.mark.parametrize("size", [(60, 40), (1200, 800)])  # as it is, and in fewer pixels
def test_an_outline_runs_round_the_object(drawn, tmp_path, size):
    width, height = size
    outlined = np.zeros((height, width), bool)
    outlined[height // 4:height // 2, width // 2:] = True
    view = ModelView(np.zeros((height, width, 3), np.uint8), (0, 0, width, height), outlined=outlined)
    nothing = ModelView(view.photo, view.box, outlined=np.zeros_like(outlined))
    draw_rows([(view, np.ones((2, 2)), ""), (nothing, np.ones((2, 2)), "")], "", tmp_path / "f.png")
    alone, over, *others = [axes.collections for axes in (drawn[0].axes[i] for i in (1, 2, 0, 3, 4, 5))]
    assert len(alone) == len(over) == 1 and not any(map(len, others))
    (left, top), (right, bottom) = alone[0].get_paths()[0].get_extents().get_points()
    assert np.allclose((left / width, top / height, bottom / height), (0.5, 0.25, 0.5), atol=0.02)
    assert right > 0.97 * width, "to the photo's edge"


def test_a_title_stays_over_its_photo_and_that_of_a_mistake_is_in_colour(drawn, tmp_path):
    view = ModelView(np.zeros((40, 40, 3), np.uint8), (0, 0, 40, 40))
    mistaken = ModelView(view.photo, view.box, mistaken=True)
    long = "26_1: \N{BALLOT X} predicted German_Shorthaired 0.98, is american_pit_bull_terrier\nshare 1%"
    for count in (1, 4):  # of four the panels are smaller
        rows = [(mistaken, np.ones((2, 2)), long)] + [(view, np.ones((2, 2)), "")] * (count - 1)
        draw_rows(rows, "", tmp_path / "f.png")
        figure = drawn[-1]
        panel, title = figure.axes[0], figure.axes[0].title
        extent = title.get_window_extent(figure.canvas.get_renderer())
        assert extent.x0 > 0 and extent.x1 < figure.axes[1].bbox.x0 and extent.y1 <= figure.bbox.y1
        assert extent.y0 >= panel.bbox.y1 and title.get_text().split() == long.split()
        assert title.get_color() == style.COLOURS[1]
    assert figure.axes[3].title.get_color() == "black"


def test_a_map_over_a_photo_is_smooth_between_the_centres_of_its_cells_and_constant_beyond(tmp_path):
    figure = Figure(figsize=(6, 1))
    axes = style.place(figure, 0, 0, 6, 1)
    show_map(axes, (-2, 0, 6, 6), np.array([[0.25, 1.0]]), Normalize(0, 1), over_photo=True)  # centres: 0, 4
    axes.set(xlim=(0, 6), ylim=(6, 0), aspect="auto")
    style.save(figure, tmp_path / "f.png")
    row = np.asarray(Image.open(tmp_path / "f.png")).astype(int)[40, 3:-3]
    steps = np.abs(np.diff(row, axis=0)).max(1)
    edge = 4 * style.DPI  # pixels for each of the 6 units
    assert steps.max() <= 4 and steps[edge:].max() <= 1 and steps[:edge - 9].sum() > 150
    assert np.abs(row[edge // 2] - row[edge]).max() > 30 < np.abs(row[edge // 2] - row[0]).max()


def test_the_label_of_the_bar_says_what_the_maps_are(drawn, tmp_path):
    last = "attention of [CLS] to each patch, block 11 of 0 to 11, mean of 3 heads"
    assert bar_label(12, 3) == bar_label(12, 3, block=11) == last
    assert bar_label(6, 1, "all") == (
        "attention of [CLS] to each patch, each block on its own colour scale, mean of 1 head")
    assert bar_label(6, 1, block=2) == "attention of [CLS] to each patch, block 2 of 0 to 5, mean of 1 head"
    for height, title in ((20, "low"), (60, "a\ntitle\nof\nfour\nlines"), (90, "high")):
        rows = [(ModelView(np.zeros((height, 90, 3), np.uint8), (0, 0, 90, height)), np.ones((2, 2)), title)]
        draw_rows(rows, bar_label(12, 3, rollout=True), tmp_path / "f.png")
        figure = drawn[-1]
        label, = figure.texts
        renderer = figure.canvas.get_renderer()
        extent, numbers = label.get_window_extent(renderer), figure.axes[-1].get_tightbbox(renderer)
        assert label.get_text().replace("\n", " ") == (
            "attention rollout from [CLS] to each patch, blocks 0 to 11, mean of 3 heads")
        assert 0 <= extent.y0 and extent.y1 <= figure.bbox.y1, "it breaks where the page is lower than it is"
        assert numbers.x1 <= extent.x0 and extent.x1 <= figure.bbox.x1


@pytest.mark.parametrize("suffix, start", [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_a_figure_is_saved_in_the_format_of_its_name(tmp_path, suffix, start):
    figure = Figure(figsize=(2, 1))
    style.place(figure, 0.5, 0.25, 1, 0.5).set_facecolor("red")
    style.save(figure, tmp_path / f"figure.{suffix}")
    assert (tmp_path / f"figure.{suffix}").read_bytes().startswith(start)
    if suffix == "png":
        picture = Image.open(tmp_path / "figure.png")
        assert picture.size == (2 * style.DPI, style.DPI) and picture.mode == "RGB"
        assert picture.getpixel((style.DPI, style.DPI // 2)) == (255, 0, 0)


def test_a_large_photo_has_no_more_pixels_than_the_page(tmp_path):
    photo = np.zeros((300, 600, 3), np.uint8)
    photo[:, :300] = 200
    small = style.downsampled(photo, 0.5)
    assert small.shape == (style.DPI // 4, style.DPI // 2, 3)
    assert small[0, 0, 0] == 200 and small[0, -1, 0] == 0
    assert style.downsampled(photo, 600 / style.DPI) is photo


def bright_seeker():
    """A test_vit whose [CLS] token attends to bright patches: one block, keys are the mean brightness."""
    model = vit.build("test_vit", 2)
    model.blocks = model.blocks[:1]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.patch_embed.proj.weight[0] = 1 / 768
        model.blocks[0].norm1.weight.fill_(1)
        model.blocks[0].attn.qkv.bias[:32] = 3  # every query
        model.blocks[0].attn.qkv.weight[64:96, 0] = 1  # keys
    return model.eval()


@pytest.mark.parametrize("size, row, column", [
    ((300, 200), 0, 0), ((300, 200), 2, 7), ((200, 300), 9, 9), ((200, 300), 7, 2), ((31, 23), 2, 7),
    ((40, 170), 0, 0), ((40, 170), 9, 9), ((3000, 2000), 2, 7)], ids=str)
def test_the_only_textured_part_of_a_photo_is_where_the_picture_lights_up(drawn, tmp_path, size, row, column):
    """The texture is drawn into the photo where the patch must come from: the evaluation resizes the shorter
    side to 168 and crops the middle 160 pixels, ten patches a side."""
    model = bright_seeker()
    preprocessing = {**vit.preprocessing(model), "crop_pct": 0.95, "interpolation": "bicubic"}
    scale = min(size) / 168
    edges = [(side / 2 + (index - 5) * 16 * scale, side / 2 + (index - 4) * 16 * scale)
             for side, index in zip(size, (column, row))]
    (left, right), (top, bottom) = edges
    photo = np.full((size[1], size[0], 3), 127, np.uint8)
    part = tuple(slice(round(max(0, low)), round(high)) for low, high in ((top, bottom), (left, right)))
    texture = np.random.default_rng(0).integers(150, 256, photo[part].shape)
    photo[part] = texture
    inputs = transforms.evaluation_transform(preprocessing)(Image.fromarray(photo))[None]
    _, (last,) = attention_maps(model, inputs)
    attention = last[0].mean(0)[0, 1:].reshape(10, 10).numpy()
    assert np.unravel_index(attention.argmax(), (10, 10)) == (row, column)

    box = transforms.crop_box(size, preprocessing)
    view = ModelView(np.full_like(photo, 127), box)
    draw_rows([(view, attention - attention.min(), "")], "", tmp_path / "figure.png")
    colour = colours_of(drawn[0].axes[2], tmp_path / "figure.png")
    lit = colour((left + right) / 2, (top + bottom) / 2)
    assert lit.max() > 200 and np.ptp(lit) > 50, "the colour map's top, over grey"
    for away in ((left - 12 * scale, top + 8 * scale), (right + 12 * scale, top + 8 * scale),
                 (left + 8 * scale, top - 12 * scale), (left + 8 * scale, bottom + 12 * scale)):
        if box[0] < away[0] < box[2] and box[1] < away[1] < box[3]:
            assert np.ptp(colour(*away)) < 50, "its neighbours keep the photo's grey"
