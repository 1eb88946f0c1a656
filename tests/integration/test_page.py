"""The page of report_page.py, of what the other scripts wrote: what Chromium draws, against the arrays."""

import json
import re
import time
from contextlib import contextmanager

import numpy as np
import pytest
import timm
import torch
from matplotlib import colormaps
from PIL import Image

import p1_viz_attn
import p1_viz_posembed
import p2_caption_viz
import report_page
from benchmarks import starting
from datasets.transforms import evaluation_transform
from interpret.attention import attention_maps
from models.checkpoint import checkpoint_fields, open_checkpoint
from models.vit import preprocessing
from page import attention
from tests.helpers.browser import (
    ALL_SHOWN,
    canvas_pixels,
    click,
    hover,
    image_of,
    readout,
    wait_for_frame,
    wait_until,
)
from tests.helpers.run_folders import write_run

HOSTILE = "</script><img src=x onerror=alert(1)>"
CLASS_NAMES = [HOSTILE, "heart", "ring", "star & co"]


def save_checkpoint(path, labels, seed):
    """A test_vit with random weights, as p1_train.py saves it."""
    torch.manual_seed(seed)
    model = timm.create_model("test_vit", num_classes=len(labels))
    torch.nn.init.normal_(model.pos_embed)
    torch.nn.init.normal_(model.head.weight)
    query, key, _ = model.blocks[1].attn.qkv.weight.detach().chunk(3)
    query.copy_(key.mul_(6))  # tokens attend to themselves, as in early layers of a trained ViT
    path.parent.mkdir()
    torch.save({**checkpoint_fields("test_vit", labels, CLASS_NAMES, preprocessing(model)), "settings": {},
                "state_dict": model.state_dict()}, path)
    return str(path)


def write_two_runs(folder):
    """Two evaluated runs on the same 16 photos, each of a colour of its own."""
    (folder / "photos").mkdir()
    for i in range(16):
        Image.new("RGB", (60, 40), (15 * i, 255 - 15 * i, 100)).save(folder / "photos" / f"{i % 3}_{i}.jpg")
    for name, wrong, rate in (("one", [2, 7], 1e-3), ("two", [0, 3, 4, 8, 9], 2e-3)):
        write_run(folder / name, ~np.isin(np.arange(16), wrong), confidence=np.linspace(0.5, 0.9, 16),
                  lr=rate, images=folder / "photos")
        arrays = dict(np.load(folder / name / "eval.npz"))
        np.savez(folder / name / "eval.npz", **{**arrays, "class_names": CLASS_NAMES[:3]})


@pytest.fixture(scope="module")
def written(shapes, captioners, tmp_path_factory):
    """A folder in which the other scripts have left all that a page shows."""
    folder = tmp_path_factory.mktemp("written")
    write_two_runs(folder)
    models = [save_checkpoint(folder / name / "best.pt", ["0", "1", "2", "3"], seed)
              for seed, name in enumerate(("first", "second"))]
    assert p1_viz_posembed.main(["--checkpoint", *models, "--output", str(folder / "posembed.png"),
                                 "--device", "cpu"]) == 0
    photos = sorted(str(path) for path in (shapes / "val").glob("*_[01].jpg"))
    assert p1_viz_attn.main([*photos, "--checkpoint", models[0], "--output-dir", str(folder / "attention"),
                             "--all", "--masks", str(shapes / "masks" / "val"), "--device", "cpu"]) == 0
    assert p2_caption_viz.main([
        str(captioners / "coco" / "val"), "--checkpoint", str(captioners / "captioner.pt"), "--all",
        "--caption", "two red stars", "--output-dir", str(folder / "captions"), "--device", "cpu"]) == 0
    add_a_layer(folder / "captions")
    (folder / "captions.json").write_text(json.dumps({"photos": 7, "exact": 0.5, "pointing": {
        "colour": {"tokens": 9, "hit": 0.9, "chance": 0.3, "mass": 0.4, "area": 0.1}}}))
    return folder


def add_a_layer(folder):
    """Give the maps of a captioner of one layer another one below it."""
    rng = np.random.default_rng(0)
    for file in folder.glob("*.npz"):
        arrays = dict(np.load(file))
        above = arrays["attention_all"]
        below = rng.random(above.shape, dtype=np.float32)
        below /= below.sum((-2, -1), keepdims=True)
        np.savez(file, **{**arrays, "attention_all": np.concatenate([below, above])})


@pytest.fixture(scope="module")
def html(written):
    output = written / "page" / "index.html"
    assert report_page.main([
        "--output", str(output), "--runs", str(written / "one"), str(written / "two"),
        "--posembed", str(written / "posembed.npz"), "--attention", str(written / "attention"),
        "--captions", str(written / "captions"), "--pointing-game", str(written / "captions.json")]) == 0
    return output


# The script -------------------------------------------------------------------------------------------------


def test_the_page_holds_all_it_needs(html):
    text = html.read_text()
    assert all(f'<section id="{name}"' in text for name in ("results", "positions", "attention", "captions"))
    for address in re.findall(r"""(?:src|href)=["']([^"']*)""", text.replace(HOSTILE, "")):
        assert address.startswith(("data:", "#")), address[:80]
    assert HOSTILE not in text, "names are text, not markup"
    assert "connect-src" not in text and "default-src 'none'" in text


def test_the_summaries_have_the_numbers_of_what_the_scripts_wrote(written, html):
    rows = [[re.sub("<.*?>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row)]
            for row in re.findall(r"<tr>.*?</tr>", html.read_text(), re.DOTALL)]
    cells = {row[0]: row[1:] for row in rows}
    maps = [np.load(file) for file in sorted((written / "attention").glob("*.npz"))]
    share, area = (np.mean([one[key] for one in maps]) for key in ("share_on_object", "share_of_area"))
    assert cells["on the object, last layer"] == [f"{100 * share:.1f} %", f"{100 * area:.1f} %", "8"]
    right = sum(str(one["predicted"]) == str(one["label"]) for one in maps)
    assert cells["class predicted right"] == [f"{100 * right / 8:.1f} %", "", "8"]
    assert cells["colour"] == ["9", "90.0 %", "30.0 %", "40.0 %", "10.0 %"]


def test_a_section_stands_where_its_flag_is_given(written, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report_page, "HEAVY", 0.01)
    output = tmp_path / "page.html"
    assert report_page.main(["--output", str(output), "--posembed", str(written / "posembed.npz"),
                             "--title", "Pets & I"]) == 0
    text = output.read_text()
    assert "<title>Pets &amp; I</title>" in text and "<h1>Pets &amp; I</h1>" in text
    assert re.findall(r'<section id="(\w+)"', text) == ["positions"]
    assert "name fewer photos" in capsys.readouterr().err


def test_photos_that_were_moved_are_found_by_their_names(written, shapes, tmp_path, capsys):
    (tmp_path / "moved").mkdir()
    arrays = dict(np.load(written / "attention" / "0_0.npz"))
    np.savez(tmp_path / "moved" / "0_0.npz", **{**arrays, "photo": "/nowhere/0_0.jpg"})
    command = ["--output", str(tmp_path / "page.html"), "--attention", str(tmp_path / "moved")]
    assert report_page.main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and len(error.splitlines()) == 1 and "with --images" in error
    assert not (tmp_path / "page.html").exists()
    assert report_page.main([*command, "--images", str(shapes / "val")]) == 0


@pytest.mark.parametrize(("flags", "expected"), [
    ("", "nothing to show"),
    ("--attention {tmp}/missing", "missing does not exist: name a folder"),
    ("--attention {folder}/posembed.npz", "posembed.npz is not a folder: name a folder"),
    ("--posembed {tmp}/missing.npz", "missing.npz does not exist"),
    ("--captions {folder}/captions --pointing-game {tmp}/missing.json", "missing.json does not exist"),
    ("--posembed {folder}/posembed.npz --pointing-game {folder}/captions.json", "belongs to --captions"),
    ("--posembed {folder}/posembed.npz --output {tmp}/page.htm", "must end with .html"),
    ("--runs {folder}/attention", "is not a run folder"),
])
def test_arguments_that_make_no_page_are_refused(written, tmp_path, capsys, flags, expected):
    flags = flags.format(folder=written, tmp=tmp_path).split()
    assert report_page.main(["--output", str(tmp_path / "page.html"), *flags]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and errors[0].startswith("error: ") and expected in errors[0]
    assert list(tmp_path.iterdir()) == []


# In Chromium ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=starting.CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@contextmanager
def opened(browser, file):
    """A page, opened from the disk; in the end no error was reported, nothing asked of the network."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(10_000)
    errors, requests = [], []
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: (errors.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(file.as_uri())
    wait_until(page, ALL_SHOWN)
    yield page
    assert errors == []
    assert [url for url in requests if not url.startswith("data:")] == [file.as_uri()]
    page.close()


@pytest.fixture
def page(browser, html):
    with opened(browser, html) as page:
        yield page


def centres(image, box, grid):
    """The pixels at the centres of the cells of a grid over `box`, and the index of those in the image."""
    left, top, right, bottom = box
    rows = (top + (np.arange(grid[0]) + 0.5) * (bottom - top) / grid[0]).astype(int)
    columns = (left + (np.arange(grid[1]) + 0.5) * (right - left) / grid[1]).astype(int)
    inside = np.ix_((rows >= 0) & (rows < image.shape[0]), (columns >= 0) & (columns < image.shape[1]))
    return image[rows[inside[0]], columns[inside[1]], :3], inside


def coloured(name, shares):
    """Colours of a matplotlib map for shares of its range, (..., 3) up to 255."""
    return 255 * colormaps[name](np.rint(255 * np.clip(shares, 0, 1)).astype(int))[..., :3]


def overlaid(photo, values, brightest, opacity):
    """A map over the pixels of a photo, (H, W, 3); alpha is the root of its share of `brightest`."""
    share = np.clip(values / brightest, 0, 1)
    alpha = (opacity * np.sqrt(share))[..., None]
    return (1 - alpha) * photo + alpha * coloured("inferno", share)


def photo_box(page, section, index):
    """The box of a photo's map and the size of its canvas, as the page knows them."""
    photo = f"data.sections.{section}.photos[{index}]"
    return page.evaluate(f"[{photo}.box, {photo}.size]")


def at(row, column):
    return f"row {row}, column {column}"


def percents(text):
    """The number in a text such as `12 %`."""
    return float(text.removesuffix(" %"))


@pytest.mark.browser
def test_hovering_over_a_patch_shows_its_similarities(page, written):
    arrays = np.load(written / "posembed.npz")
    for model, key in enumerate(("similarity", "similarity_1")):
        page.locator("[name=positions-model]").nth(model).check()
        similarity = arrays[key]
        height, width = similarity.shape[:2]
        low, high = similarity.min(), similarity.max()
        colours = coloured("viridis", (similarity - low) / (high - low))
        wait_until(page, f"document.getElementById('positions-low').textContent === '{low:.2f}'")
        for canvas, row, column in (("positions-map", 1, 2), ("positions-grid", height - 1, 0)):
            hover(page, canvas, (column + 0.5) / width, (row + 0.5) / height)
            image = canvas_pixels(page, "positions-map")
            pixels, _ = centres(image, (0, 0, image.shape[1], image.shape[0]), (height, width))
            assert np.abs(pixels - colours[row, column]).max() <= 6
            numbers = readout(page, "positions")
            assert numbers["patch"] == at(row, column)
            others = similarity[row, column].copy()
            others[row, column] = -2
            nearest = tuple(map(int, re.findall(r"\d+", numbers["most similar other patch"])))
            step = (high - low) / 255  # of what the page knows
            assert others[nearest] >= others.max() - step
            assert float(numbers["cosine similarity"]) == pytest.approx(others.max(), abs=0.005 + float(step))
    page.locator("#positions-map").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    assert readout(page, "positions")["patch"] == at(height - 2, 1)
    # the overview: each map in its place
    grid = canvas_pixels(page, "positions-grid")
    down, across = grid.shape[0] // height, grid.shape[1] // width
    for row, column in ((0, 0), (2, 3)):
        tile = grid[row * down:(row + 1) * down - 2, column * across:(column + 1) * across - 2]
        pixels, _ = centres(tile, (0, 0, across - 2, down - 2), (height, width))
        assert np.abs(pixels - colours[row, column]).max() <= 6


def attention_map(arrays, layer, head, query):
    """The map of a query, None for [CLS], (H, W): of a head, or for None the mean."""
    weights, grid = arrays["attention_all"][layer], arrays["attention"].shape
    prefix = weights.shape[1] - weights.shape[2]
    row = 0 if query is None else prefix + query[0] * grid[1] + query[1]
    rows = weights[:, row] * arrays["attention_all_scale"][layer, :, row, None]
    if query is None:
        rows = arrays["attention_cls"][layer, :, prefix:]
    rows = rows.reshape(-1, *grid)
    return rows.mean(0) if head is None else rows[head]


class AttentionView:
    """The attention section of a page with a photo, whose pixels are compared with its arrays."""

    def __init__(self, page, file, index=0):
        self.page, self.arrays = page, dict(np.load(file))
        self.box, self.size = photo_box(page, "attention", index)
        self.grid = self.arrays["attention"].shape
        self.layers, self.heads, _ = self.arrays["attention_all_scale"].shape
        page.locator("#attention-opacity").fill("0")
        self.image = canvas_pixels(page, "attention-photo")
        self.photo, _ = centres(self.image, self.box, self.grid)
        page.locator("#attention-opacity").fill("100")

    def place(self, row, column):
        """The centre of a patch, in shares of the canvas."""
        left, top, right, bottom = self.box
        return ((left + (column + 0.5) * (right - left) / self.grid[1]) / self.size[0],
                (top + (row + 0.5) * (bottom - top) / self.grid[0]) / self.size[1])

    def check(self, layer, head, query, opacity=1.0, brightest=1.0):
        """Compare what is drawn and what the readout says with the map of a query."""
        pixels, _ = centres(canvas_pixels(self.page, "attention-photo"), self.box, self.grid)
        expected = attention_map(self.arrays, layer, head, query)
        assert np.abs(pixels - overlaid(self.photo, expected, brightest * expected.max(), opacity)).max() <= 6
        numbers = readout(self.page, "attention")
        assert numbers["query"] == ("[CLS]" if query is None else at(*query))
        assert numbers["layer"] == str(layer)
        assert numbers["head"] == (f"mean of {self.heads}" if head is None else str(head))
        assert numbers["peak at"] == at(*np.unravel_index(expected.argmax(), self.grid))
        assert percents(numbers["its peak"]) == pytest.approx(100 * expected.max(), abs=0.51)
        assert percents(numbers["attention on patches"]) == pytest.approx(100 * expected.sum(), abs=0.51)
        inside, outside = self.arrays["object_cover"], self.arrays["background_cover"]
        on = (expected * inside).sum() / (expected * (inside + outside)).sum()
        area = inside.sum() / (inside + outside).sum()
        for name, share in (("of it on the object", on), ("by chance (area)", area)):
            assert percents(numbers[name]) == pytest.approx(100 * share, abs=0.7), "covers are bytes there"


@pytest.mark.browser
def test_hovering_over_patches_and_heads_shows_their_attention(page, written):
    view = AttentionView(page, min((written / "attention").glob("*.npz")))
    last = view.layers - 1
    view.check(last, None, None)
    query = (2, 3)
    hover(page, "attention-photo", *view.place(*query))
    view.check(last, None, query)
    hover(page, "attention-heads", 0.5, 0.999)  # off the photo: back to [CLS]
    hover(page, "attention-heads", (view.heads - 0.5) / view.heads, 0.5 / view.layers)
    view.check(0, view.heads - 1, None)
    assert page.locator("#attention-layer").input_value() == "0"

    click(page, "attention-photo", *view.place(*query))
    hover(page, "attention-heads", 0.5 / view.heads, 0.5 / view.layers)
    view.check(0, 0, query)  # it was kept
    page.locator("#attention-opacity").fill("60")
    page.locator("#attention-top").fill("40")
    view.check(0, 0, query, opacity=0.6, brightest=0.4)

    # the overview: all maps of the query, on one square-root scale
    image = canvas_pixels(page, "attention-heads")
    high, wide = image.shape[0] / view.layers, image.shape[1] / view.heads
    maps = np.stack([[attention_map(view.arrays, layer, head, query) for head in range(view.heads)]
                     for layer in range(view.layers)])
    box = (wide * (view.heads - 1) + 4, high * last + 4, wide * view.heads - 4, high * view.layers - 4)
    pixels, _ = centres(image, box, view.grid)
    assert np.abs(pixels - coloured("inferno", np.sqrt(maps[-1, -1] / maps.max()))).max() <= 12


@pytest.mark.browser
def test_the_maps_are_those_of_the_model_in_every_layer(page, written):
    """To 1 % of the peak of each row; those of [CLS] are floats."""
    checkpoint = open_checkpoint(written / "first" / "best.pt")
    photo = Image.open(np.load(min((written / "attention").glob("*.npz")))["photo"].item()).convert("RGB")
    inputs = evaluation_transform(checkpoint.preprocessing)(photo)[None]
    _, maps = attention_maps(checkpoint.model.eval(), inputs, range(6))
    heads, tokens = maps[0].shape[1:3]
    assert maps[1].max() / maps[1][..., 1:].amax(-1).min() > 5.1, "one scale a head: half a step is over 1 %"
    for layer, block in enumerate(maps):
        shown = page.evaluate("""([layer, heads, tokens]) => range(heads).map(head =>
          range(tokens).map(token => {
            const photo = data.sections.attention.photos[0], at = token - 1;
            const query = token ? [Math.floor(at / photo.grid[1]), at % photo.grid[1]] : null;
            return [...attentionMap(photo, layer, head, query)];
        }))""", [layer, heads, tokens])
        expected = block[0, ..., 1:].numpy()
        errors = np.abs(shown - expected) / expected.max(-1, keepdims=True)
        assert errors.max() < 0.01 and errors[:, 0].max() < 1e-3, layer


@pytest.mark.browser
def test_a_photo_in_brief_shows_the_last_layers_map(browser, written, tmp_path, monkeypatch):
    """Of the photos that do not fit: the map of the model over a thumbnail, nothing to choose, no errors."""
    monkeypatch.setattr(report_page, "MOST", 0)
    monkeypatch.setattr(attention, "LEAST", 1)
    assert report_page.main(["--output", str(tmp_path / "index.html"), "--attention",
                             str(written / "attention"), "--posembed", str(written / "posembed.npz")]) == 0
    with opened(browser, tmp_path / "index.html") as page:
        view = AttentionView(page, written / "attention" / f"{shown_name(page, 0)}.npz", 0)
        view.check(view.layers - 1, None, None)
        assert page.locator("#attention-heads").is_visible()
        page.locator("#attention-photo").press("n")
        wait_until(page, "!document.getElementById('attention-heads').offsetParent")
        brief = AttentionView(page, written / "attention" / f"{shown_name(page, 1)}.npz", 1)
        page.locator("#attention-photo").hover()
        page.locator("#attention-photo").press("ArrowDown")
        brief.check(view.layers - 1, None, None)
        assert not any(page.locator(f"#attention-{part}").is_visible() for part in ("layer", "head", "cls"))
        page.locator("#attention-photo").press("p")
        wait_until(page, "document.getElementById('attention-heads').offsetParent")
        view.check(view.layers - 1, None, None)


def shown_name(page, index):
    return page.evaluate(f"data.sections.attention.photos[{index}].name")


@pytest.mark.browser
def test_keys_move_the_query(page, written):
    view = AttentionView(page, min((written / "attention").glob("*.npz")))
    click(page, "attention-photo", *view.place(2, 3))
    page.locator("#attention-layer").select_option("1")
    for key, query in (("ArrowDown", (3, 3)), ("Escape", None), ("ArrowLeft", (0, 0)),
                       ("ArrowRight", (0, 1))):
        page.locator("#attention-photo").press(key)
        view.check(1, None, query)
    page.locator("#attention-cls").click()
    view.check(1, None, None)


@pytest.mark.browser
@pytest.mark.parametrize("canvas", ["attention-photo", "attention-heads", "positions-grid", "captions-photo"])
def test_a_picture_is_saved_as_it_is_shown(page, canvas):
    with page.expect_download() as saved:
        page.locator(f"[data-saves={canvas}]").click()
    assert saved.value.suggested_filename == f"{canvas}.png"
    picture = np.asarray(Image.open(saved.value.path()).convert("RGBA"))
    assert np.array_equal(picture, canvas_pixels(page, canvas)) and picture.std() > 1


@pytest.mark.browser
def test_the_photo_is_dimmed_where_the_model_did_not_see_it(page, written):
    view = AttentionView(page, min((written / "attention").glob("*.npz")))
    photo = Image.open(str(view.arrays["photo"])).convert("RGB").resize(view.size, Image.BICUBIC)
    original = np.asarray(photo).astype(int)
    difference = view.photo - centres(original, view.box, view.grid)[0]
    assert np.abs(difference).mean() < 12, "the photo itself, but for JPEG and resizing"
    left, top, right, bottom = view.box
    y, x = np.mgrid[:view.size[1], :view.size[0]]
    outside = (x < left - 1) | (y < top - 1) | (x > right + 1) | (y > bottom + 1)
    assert outside.mean() > 0.01
    assert np.abs(view.image[outside][:, :3] - 0.35 * original[outside]).mean() < 8


@pytest.mark.browser
def test_keys_step_through_the_photos_wrong_ones_first(page, written):
    files = sorted((written / "attention").glob("*.npz"))
    arrays = [dict(np.load(file)) for file in files]
    wrong = [str(one["label"]) != str(one["predicted"]) for one in arrays]
    assert any(wrong) and not all(wrong), "the test needs both"
    for key, expected in (("n", 1), ("n", 2), ("p", 1), ("p", 0), ("p", len(files) - 1)):
        page.locator("#attention-photo").press(key)
        wait_until(page, f"document.getElementById('attention-photo-list').selectedIndex === {expected}")
    confidence = f"{float(arrays[-1]['confidence']):.2f}"
    text = "document.getElementById('attention-readout').textContent"
    wait_until(page, f"{text}.includes('probability{confidence}')")
    page.locator("#attention-wrong").check()
    names = page.locator("#attention-photo-list option").all_text_contents()
    first = [f"{file.stem} (wrong)" for file, is_wrong in zip(files, wrong) if is_wrong]
    assert names == first + [file.stem for file, is_wrong in zip(files, wrong) if not is_wrong]
    wait_until(page, f"{text}.endsWith('(wrong)')")
    numbers, photo = readout(page, "attention"), arrays[wrong.index(True)]
    assert numbers["predicted"] == str(photo["predicted"])
    assert numbers["true class"] == f"{photo['label']} (wrong)"
    page.locator("#attention [data-step='1']").click()
    assert page.locator("#attention-photo-list").input_value() == "1"


@pytest.mark.browser
def test_hovering_over_a_word_shows_its_map(page, written):
    file = min((written / "captions").glob("*.json"))
    caption, maps = json.loads(file.read_text()), np.load(file.with_suffix(".npz"))["attention_all"]
    tokens = caption["tokens"][:-1] + ["[end]"]
    box, _ = photo_box(page, "captions", 0)
    grid = maps.shape[2:]
    buttons = page.locator("#captions-tokens button")
    assert buttons.all_text_contents() == tokens
    page.locator("#captions-opacity").fill("0")
    photo, inside = centres(canvas_pixels(page, "captions-photo"), box, grid)
    page.locator("#captions-opacity").fill("100")

    def check(layer, parts):
        pixels, _ = centres(canvas_pixels(page, "captions-photo"), box, grid)
        expected = maps[layer][parts].mean(0)
        assert np.abs(pixels - overlaid(photo, expected[inside], expected.max(), 1)).max() <= 8
        numbers = readout(page, "captions")
        assert numbers["probability"] == f"{np.exp(sum(caption['log_probs'][t] for t in parts)):.2f}"
        assert numbers["layer"] == str(layer)
        assert percents(numbers["peak"]) == pytest.approx(100 * expected.max(), abs=0.51)
        assert numbers["peak at"] == at(*np.unravel_index(expected.argmax(), grid))

    assert len(maps) == 2
    buttons.nth(2).hover()
    check(1, [2])
    buttons.nth(2).focus()
    page.keyboard.press("ArrowRight")
    check(1, [3])
    assert buttons.nth(3).get_attribute("aria-pressed") == "true"
    page.keyboard.press("Home")
    page.keyboard.press("ArrowLeft")
    check(1, [0])
    page.keyboard.press("End")
    check(1, [len(tokens) - 1])
    page.locator("#captions-layer").select_option("0")
    check(0, [len(tokens) - 1])
    page.locator("#captions-words").check()
    assert buttons.all_text_contents() == ["two", "red", "stars", "[end]"]
    pieces = [i for i, token in enumerate(tokens) if token in ("star", "##s")]
    assert len(pieces) == 2
    buttons.nth(2).hover()
    check(0, pieces)
    page.locator("#captions [data-step='1']").click()
    wait_until(page, "document.getElementById('captions-photo-list').selectedIndex === 1")


@pytest.mark.browser
def test_a_cell_of_the_confusion_matrix_shows_its_photos(page, written):
    with np.load(written / "two" / "eval.npz") as arrays:
        probabilities, targets, names = arrays["probabilities"], arrays["targets"], arrays["names"]
    predicted = probabilities.argmax(1)
    page.locator("#matrix").select_option("1")
    cell = page.locator(f"[data-matrix='1'] [data-cell='{targets[0]}-{predicted[0]}']")
    images = np.flatnonzero((targets == targets[0]) & (predicted == predicted[0]))
    images = sorted(images, key=lambda i: -probabilities[i].max())
    assert cell.text_content() == str(len(images)) and len(images) > 1
    cell.click()
    assert page.locator("#cell-photos li").all_text_contents() == [
        f"{names[i]}, {probabilities[i].max():.2f}" for i in images]
    thumbnail = page.locator("#cell-photos img").first
    assert thumbnail.evaluate("image => image.decode().then(() => image.naturalWidth)") > 20
    colour = Image.open(written / "photos" / str(names[images[0]])).getpixel((0, 0))
    pixels = image_of(thumbnail.get_attribute("src"))[..., :3]
    assert np.abs(pixels - colour).max() <= 6, "each photo has a colour of its own"

    filled = sorted({(int(t), int(p)) for t, p in zip(targets, predicted)})
    (row, column), below = next((cell, other[0]) for cell in filled for other in filled
                                if cell[1] == other[1] and other[0] > cell[0])
    page.locator(f"[data-matrix='1'] [data-cell='{row}-{column}']").focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.dataset.cell") == f"{below}-{column}"
    page.keyboard.press("Enter")
    assert page.locator("[aria-pressed=true][data-cell]").count() == 1
    title = page.locator("#cell-photos h4").text_content()
    assert title == page.evaluate("document.activeElement.getAttribute('aria-label')")


@pytest.mark.browser
def test_names_of_strangers_are_text(page):
    assert page.locator("img[src=x]").count() == 0
    assert HOSTILE in page.locator("[data-matrix='0'] tbody th").first.text_content()


@pytest.mark.browser
def test_everything_has_a_name_and_can_be_reached_by_the_keyboard(page):
    nameless = page.evaluate("""
        [...document.querySelectorAll("button, select, input, canvas[role], [role=region]")]
        .filter(each => !(each.getAttribute("aria-label") || each.textContent.trim() || each.labels?.length))
        .map(each => each.outerHTML)""")
    assert nameless == []
    reached = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"positions-grid", "positions-map", "attention-photo", "attention-heads", "attention-layer",
            "attention-head", "attention-cls", "attention-opacity", "attention-top", "captions-layer",
            "captions-words", "matrix"} <= reached


@pytest.mark.browser
def test_the_last_photo_asked_for_is_the_one_shown(page, written):
    """However long the others take to come."""
    page.evaluate("""() => {
        const inflate = DecompressionStream;
        let wait = 400;
        window.DecompressionStream = function (kind) {
            const inner = new inflate(kind), milliseconds = wait;
            const flush = () => new Promise(done => setTimeout(done, milliseconds));
            const delay = new TransformStream({flush});
            wait = 0;  // the first one takes longest
            return {readable: inner.readable.pipeThrough(delay), writable: inner.writable};
        };
    }""")
    page.locator("#attention-photo").press("n")
    page.locator("#attention-photo").press("n")
    page.locator("#attention-opacity").fill("0")
    time.sleep(0.8)
    assert page.evaluate("document.getElementById('attention-photo-list').selectedIndex") == 2
    image, differences = canvas_pixels(page, "attention-photo"), []
    for i, file in enumerate(sorted((written / "attention").glob("*.npz"))[1:3], start=1):
        box, size = photo_box(page, "attention", i)
        if size != [image.shape[1], image.shape[0]]:
            differences.append(255)
            continue
        arrays = np.load(file)
        photo = Image.open(str(arrays["photo"])).convert("RGB").resize(size, Image.BICUBIC)
        pixels, expected = (centres(each, box, arrays["attention"].shape)[0]
                            for each in (image, np.asarray(photo).astype(int)))
        differences.append(np.abs(pixels - expected).mean())
    assert differences[1] < 12 < differences[0]


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone_or_lost_on_a_projector(browser, html, scheme):
    page = browser.new_page(color_scheme=scheme)
    page.goto(html.as_uri())
    wait_until(page, ALL_SHOWN)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", background)[:3])) < 60) == (scheme == "dark")
    page.evaluate("""document.querySelectorAll("#results table:not(.confusion) th[scope=row]").forEach(
        each => { each.textContent = "one of eight settings, ".repeat(8); })""")
    for width in (360, 1280, 1920):
        page.set_viewport_size({"width": width, "height": 800})
        wait_for_frame(page)
        accuracy = page.locator("#results th", has_text="accuracy on val").bounding_box()
        assert width == 360 or accuracy["x"] + accuracy["width"] < width, "a first cell that is long wraps"
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for canvas in ("positions-map", "attention-photo", "captions-photo"):
            assert page.locator(f"#{canvas}").bounding_box()["width"] >= min(280, width)
    page.close()


@pytest.mark.browser
def test_opening_and_hovering_are_timed(browser, html, monkeypatch):
    monkeypatch.setattr(starting, "MOVES", 5)
    monkeypatch.setattr(starting, "PAGE", html)
    rows = list(starting.page_rows(browser, 1))
    assert [row.unit for row in rows] == ["s", "ms"] and all(row.value > 0 for row in rows)
