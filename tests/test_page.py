"""The page of report_page.py: what it says, and in Chromium what it draws, against the arrays that it was made of."""

import base64
import io
import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image

import p1_eval
import p1_viz_attn
import p1_viz_posembed
import p2_caption_viz
import report_page
from benchmarks.page import CHROMIUM
from compare.statistics import wilson_interval
from page import attention, captions, positions
from page.packing import as_bytes

HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def written(run, shapes, captioners, tmp_path_factory):
    """A folder in which the other scripts have left all that a page shows: two runs, similarities, attention, captions."""
    folder = tmp_path_factory.mktemp("written")
    for name, rate in (("one", 1e-3), ("two", 2e-3)):
        shutil.copytree(run, folder / name)
        config = json.loads((folder / name / "config.json").read_text())
        config["settings"]["lr"] = rate
        (folder / name / "config.json").write_text(json.dumps(config))
        saved = torch.load(folder / name / "best.pt", weights_only=True)
        saved["class_names"] = [HOSTILE, "heart", "ring", "star & co"]
        torch.manual_seed(len(name) + int(rate * 1000))
        saved["state_dict"]["pos_embed"] += torch.randn(saved["state_dict"]["pos_embed"].shape)
        torch.save(saved, folder / name / "best.pt")
        assert p1_eval.main([str(shapes / "val"), "--checkpoint", str(folder / name / "best.pt"), "--device", "cpu"]) == 0
    best = [str(folder / name / "best.pt") for name in ("one", "two")]
    assert p1_viz_posembed.main(["--checkpoint", *best, "--output", str(folder / "posembed.png"), "--device", "cpu"]) == 0
    photos = sorted(str(path) for path in (shapes / "val").glob("*_[01].jpg"))
    assert p1_viz_attn.main([*photos, "--checkpoint", best[0], "--output-dir", str(folder / "attention"), "--all",
                             "--masks", str(shapes / "masks" / "val"), "--device", "cpu"]) == 0
    assert p2_caption_viz.main([str(captioners / "coco" / "val"), "--checkpoint", str(captioners / "captioner.pt"), "--all",
                                "--caption", "two red stars", "--output-dir", str(folder / "captions"), "--device", "cpu"]) == 0
    rng = np.random.default_rng(0)
    for file in (folder / "captions").glob("*.npz"):  # its captioner has one layer: another one below it
        arrays = dict(np.load(file))
        below = rng.random(arrays["attention_all"].shape, dtype=np.float32)
        arrays["attention_all"] = np.concatenate([below / below.sum((-2, -1), keepdims=True), arrays["attention_all"]])
        np.savez(file, **arrays)
    (folder / "pointing.json").write_text(json.dumps({"photos": 7, "exact": 0.5, "pointing": {
        "colour": {"tokens": 9, "hit": 0.9, "chance": 0.3, "mass": 0.4, "area": 0.1},
        "shape": {"tokens": 8, "hit": 0.5, "chance": 0.4, "mass": 0.2, "area": 0.1}}}))
    return folder


def arguments(folder, output):
    return ["--output", str(output), "--runs", str(folder / "one"), str(folder / "two"),
            "--posembed", str(folder / "posembed.npz"), "--attention", str(folder / "attention"), "--captions", str(folder / "captions"),
            "--pointing", str(folder / "pointing.json")]


@pytest.fixture(scope="module")
def html(written):
    assert report_page.main(arguments(written, written / "page" / "index.html")) == 0
    return written / "page" / "index.html"


# Without a browser ------------------------------------------------------------------------------------------------------


def test_the_page_holds_all_it_needs(html):
    text = html.read_text()
    assert all(f'<section id="{name}"' in text for name in ("results", "positions", "attention", "captions"))
    for address in re.findall(r"""(?:src|href)=["']([^"']*)""", text.replace(HOSTILE, "")):
        assert address.startswith(("data:", "#")), address[:80]
    assert HOSTILE not in text, "names are text, not markup"
    assert "connect-src" not in text and "default-src 'none'" in text


def test_a_section_stands_where_its_flag_is_given(written, tmp_path):
    assert report_page.main(["--output", str(tmp_path / "p.html"), "--posembed", str(written / "posembed.npz")]) == 0
    text = (tmp_path / "p.html").read_text()
    assert '<section id="positions"' in text and '<section id="attention"' not in text and "<h2>Results" not in text


def test_bytes_are_the_values_within_half_a_step():
    values = np.random.default_rng(0).uniform(-0.5, 2, (3, 4, 5)).astype(np.float32)
    packed, scale = as_bytes(values, -0.5)
    assert packed.dtype == np.uint8 and scale.shape == (3,)
    assert (np.abs(-0.5 + scale[:, None, None] * packed - values) <= scale[:, None, None] / 2 + 1e-6).all()
    assert (as_bytes(np.zeros((2, 2)))[0] == 0).all()


def test_the_story_has_the_runs_own_numbers(written, html):
    text = re.sub(r"\s+", " ", html.read_text())
    arrays = [np.load(written / name / "eval.npz") for name in ("one", "two")]
    right = [int((one["probabilities"].argmax(1) == one["targets"]).sum()) for one in arrays]
    low, high = wilson_interval(max(right), 16)
    assert f"answers {percent(max(right) / 16)} of the 16 photos" in text
    assert f"(95 % interval {percent(low)} to {percent(high)}), the most of 2 settings" in text
    similarity = np.load(written / "posembed.npz")["similarity"]
    side = len(similarity)
    same_row = np.mean([similarity[i, j, i, k] for i in range(side) for j in range(side) for k in range(side) if k != j])
    assert f"two patches of one row are alike by {same_row:.2f} on average" in text
    maps = [np.load(file) for file in sorted((written / "attention").glob("*.npz"))]
    predicted = sum(str(one["predicted"]) == str(one["label"]) for one in maps)
    assert f"it answers {predicted} of the 8 labelled ones right" in text
    share = np.mean([one["share_on_object"] for one in maps])
    assert f"In the last layer {percent(share)} of its attention lies on the object" in text
    assert "the peak for a word of the class colour lies on what it names in 90 %, by chance in 30 %" in text
    assert "The narrowest one is that of shape: 50 %, by chance 40 %." in text


def percent(share):
    return f"{100 * share:.1f} %" if 0 < share < 0.1 or 0.9 < share < 1 else f"{100 * share:.0f} %"


def test_the_story_without_masks_and_without_scenes(written, tmp_path):
    file = sorted((written / "attention").glob("*.npz"))[0]
    arrays = {name: value for name, value in np.load(file).items() if not name.endswith("_cover")}
    read = [arrays]
    shown = [{"model": "m", "label": "", "predicted": ""}]
    sentences = attention.story(shown, read)
    assert len(sentences) == 4 and "right" not in sentences[0]
    weights = arrays["attention_all"][-1].astype(float) * arrays["attention_all_scale"][-1][:, None, None]
    assert f"gives {percent(weights[:, 0, 0].mean())} of its attention to itself" in sentences[2]

    told, maps = captions.read_caption(next((written / "captions").glob("*.json")))
    shown = [{"name": "a", "tokens": [{"text": token} for token in told["tokens"]], "log_probs": told["log_probs"]}]
    sentences = captions.story(shown, [(told, maps)], None)
    assert len(sentences) == 4 and f"one cell has {percent(maps[-1].max())}" in sentences[2]


def test_chance_of_a_neighbour_is_that_of_a_count():
    def counted(height, width):
        shares = [sum((abs(i - y) <= 1 and abs(j - x) <= 1) for y in range(height) for x in range(width)) - 1
                  for i in range(height) for j in range(width)]
        return np.mean(shares) / (height * width - 1)

    for grid in ((2, 2), (3, 5), (14, 14), (1, 4)):
        assert positions.adjacent_by_chance(*grid) == pytest.approx(counted(*grid))


@pytest.mark.parametrize(("flags", "expected"), [
    ("", "nothing to show"),
    ("--attention {folder}/captions", "no arrays of p1_viz_attn.py"),
    ("--attention {tmp}/missing", "missing does not exist"),
    ("--attention {tmp}/plain", "0_0.npz does not hold all layers"),
    ("--attention {tmp}/cut", "0_0.npz does not hold all layers"),
    ("--posembed {tmp}/cut/0_0.npz", "holds no similarities"),
    ("--captions {tmp}/cut_captions", "draw it with p2_caption_viz.py --all"),
    ("--attention {tmp}/moved", "does not exist any more: name the folder of the photos with --images"),
    ("--captions {folder}/attention", "no captions of p2_caption_viz.py"),
    ("--captions {tmp}/plain_captions", "draw it with p2_caption_viz.py --all"),
    ("--posembed {tmp}/missing.npz", "missing.npz does not exist"),
    ("--posembed {folder}/attention/0_0.npz", "holds no similarities"),
    ("--captions {folder}/captions --pointing {tmp}/missing.json", "missing.json does not exist"),
    ("--captions {folder}/captions --pointing {folder}/one/config.json", "is no result of p2_eval.py"),
    ("--posembed {folder}/posembed.npz --pointing {folder}/pointing.json", "belongs to --captions"),
    ("--runs {folder}/attention", "is not a run folder"),
])
def test_what_is_missing_is_named(written, tmp_path, capsys, flags, expected):
    for name in ("plain", "moved", "cut"):
        (tmp_path / name).mkdir()
    (tmp_path / "cut" / "0_0.npz").write_bytes((written / "attention" / "0_0.npz").read_bytes()[:-3000])
    arrays = dict(np.load(written / "attention" / "0_0.npz"))
    np.savez(tmp_path / "moved" / "0_0.npz", **{**arrays, "photo": "/nowhere/0_0.jpg"})
    np.savez(tmp_path / "plain" / "0_0.npz", attention=arrays["attention"])
    shutil.copytree(written / "captions", tmp_path / "plain_captions")
    for file in (tmp_path / "plain_captions").glob("*.npz"):
        np.savez(file, attention=np.load(file)["attention"])
    shutil.copytree(written / "captions", tmp_path / "cut_captions")
    for file in (tmp_path / "cut_captions").glob("*.npz"):
        file.write_bytes(file.read_bytes()[:100])
    output = tmp_path / "page.html"
    code = report_page.main(["--output", str(output), *flags.format(folder=written, tmp=tmp_path).split()])
    said = capsys.readouterr().err.splitlines()
    assert code == 2 and len(said) == 1 and said[0].startswith("error: ") and expected in said[0]
    assert not output.exists()


def test_photos_that_were_moved_are_found_by_their_names(written, shapes, tmp_path):
    (tmp_path / "moved").mkdir()
    arrays = dict(np.load(written / "attention" / "0_0.npz"))
    np.savez(tmp_path / "moved" / "0_0.npz", **{**arrays, "photo": "/nowhere/0_0.jpg"})
    assert report_page.main(["--output", str(tmp_path / "p.html"), "--attention", str(tmp_path / "moved"),
                             "--images", str(shapes / "val")]) == 0


def test_a_page_that_opens_slowly_is_remarked_on(written, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report_page, "HEAVY", 1000)
    assert report_page.main(["--output", str(tmp_path / "p.html"), "--posembed", str(written / "posembed.npz")]) == 0
    assert "name fewer photos" in capsys.readouterr().err


def contrast(one, other):
    """WCAG 2's contrast of two colours such as #fff."""
    def luminance(colour):
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        channels = [int(digits[i:i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_text_has_contrast_in_light_and_dark():
    style = Path(report_page.__file__).with_name("report").joinpath("style.css").read_text()
    themes = [dict(re.findall(r"--(\w+): (#\w+)", block)) for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)]
    assert len(themes) == 2
    for theme in themes:
        for text in ("ink", "quiet", "accent"):
            assert contrast(theme[text], theme["page"]) >= 4.5 and contrast(theme[text], theme["panel"]) >= 4.5
        assert contrast(theme["focus"], theme["page"]) >= 3


# In a browser -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, html):
    """The page, opened from the disk; in the end no error was reported and nothing was asked of the network."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    opened.set_default_timeout(10_000)
    complaints, requests = [], []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(html.as_uri())
    wait_until(opened, "[...document.querySelectorAll('output[id$=told]')].every(each => each.textContent)")
    yield opened
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [html.as_uri()]
    opened.close()


def wait_until(page, condition):
    """Wait until an expression is true. Playwright's own wait would evaluate text in the page, which forbids that."""
    until = time.monotonic() + 10
    while not page.evaluate(condition):
        assert time.monotonic() < until, f"never: {condition}"
        time.sleep(0.02)


def settled(page):
    """Wait until what was asked for is drawn."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def pixels(page, canvas):
    """What a canvas shows, as an array (height, width, 4)."""
    settled(page)
    address = page.evaluate(f"document.getElementById('{canvas}').toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))).convert("RGBA")).astype(int)


def point(page, canvas, x, y, how="move"):
    """Move the mouse to a place of a canvas, in shares of its sides, and perhaps press it."""
    page.locator(f"#{canvas}").scroll_into_view_if_needed()
    box = page.locator(f"#{canvas}").bounding_box()
    page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
    if how == "click":
        page.mouse.down()
        page.mouse.up()
    settled(page)


def centres(image, box, grid):
    """The pixels at the centres of the cells of a grid over `box` (left, top, right, bottom): (H, W, 4)."""
    left, top, right, bottom = box
    rows = (top + (np.arange(grid[0]) + 0.5) * (bottom - top) / grid[0]).astype(int)
    columns = (left + (np.arange(grid[1]) + 0.5) * (right - left) / grid[1]).astype(int)
    inside = np.ix_((rows >= 0) & (rows < image.shape[0]), (columns >= 0) & (columns < image.shape[1]))
    return image[rows[inside[0]], columns[inside[1]]], inside


def coloured(name, shares):
    """Colours of a matplotlib map for shares of its range, (..., 3) up to 255."""
    return 255 * colormaps[name](np.rint(255 * np.clip(shares, 0, 1)).astype(int))[..., :3]


@pytest.mark.browser
def test_pointing_at_a_patch_shows_its_similarities(page, written):
    arrays = np.load(written / "posembed.npz")
    for model, key in enumerate(("similarity", "similarity_1")):
        page.locator("[name=positions-model]").nth(model).check()
        similarity = arrays[key]
        height, width = similarity.shape[:2]
        for canvas, row, column in (("positions-map", 1, 2), ("positions-grid", height - 1, 0)):
            point(page, canvas, (column + 0.5) / width, (row + 0.5) / height)
            wait_until(page, "document.getElementById('positions-told').textContent"
                             f".startsWith('Patch in row {row}, column {column}.')")
            image = pixels(page, "positions-map")
            found, _ = centres(image, (0, 0, image.shape[1], image.shape[0]), (height, width))
            low, high = similarity.min(), similarity.max()
            assert np.abs(found[..., :3] - coloured("viridis", (similarity[row, column] - low) / (high - low))).max() <= 6
            others = similarity[row, column].copy()
            others[row, column] = -2
            told = re.search(r"row (\d+), column (\d+), with (.*)\.$", page.locator("#positions-told").text_content())
            step = (high - low) / 255  # of what the page knows
            assert others[int(told[1]), int(told[2])] >= others.max() - step
            assert float(told[3]) == pytest.approx(others.max(), abs=0.005 + float(step))
    page.locator("#positions-map").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    settled(page)
    assert page.locator("#positions-told").text_content().startswith(f"Patch in row {height - 2}, column 1.")
    # the overview: each map in its place
    grid = pixels(page, "positions-grid")
    down, across = grid.shape[0] // height, grid.shape[1] // width
    for row, column in ((0, 0), (2, 3)):
        tile = grid[row * down:(row + 1) * down - 1, column * across:(column + 1) * across - 1]
        found, _ = centres(tile, (0, 0, across - 1, down - 1), (height, width))
        assert np.abs(found[..., :3] - coloured("viridis", (similarity[row, column] - low) / (high - low))).max() <= 6


def shown_over(photo, values, top, opacity):
    """What a map shows over the pixels of a photo, (H, W, 3): the colour of its share of `top`, more of it for more."""
    share = np.clip(values / top, 0, 1)
    alpha = (opacity * np.sqrt(share))[..., None]
    return (1 - alpha) * photo + alpha * coloured("inferno", share)


def canvas_box(page, section, index):
    """The box of a photo's map and its canvas, as the page knows them."""
    photo = page.evaluate(f"data.sections.{section}.photos[{index}]")
    return photo["box"], photo["size"]


def attention_map(arrays, layer, head, query):
    """The map of a query, None for [CLS], (H, W): of a head, or for None the mean."""
    weights = arrays["attention_all"] * arrays["attention_all_scale"][..., None, None]
    grid = arrays["attention"].shape
    prefix = weights.shape[-1] - grid[0] * grid[1]
    row = 0 if query is None else prefix + query[0] * grid[1] + query[1]
    rows = weights[layer, :, row, prefix:].reshape(-1, *grid)
    return rows.mean(0) if head is None else rows[head]


@pytest.mark.browser
def test_pointing_at_patches_and_heads_shows_their_attention(page, written):
    files = sorted((written / "attention").glob("*.npz"))
    arrays = dict(np.load(files[0]))
    box, size = canvas_box(page, "attention", 0)
    grid = arrays["attention"].shape

    def check(layer, head, query, opacity=1.0, top=1.0):
        found, _ = centres(pixels(page, "attention-photo"), box, grid)
        expected = attention_map(arrays, layer, head, query)
        assert np.abs(found[..., :3] - shown_over(photo, expected, top * expected.max(), opacity)).max() <= 6
        told = page.locator("#attention-told").text_content()
        inside, outside = arrays["object_cover"], arrays["background_cover"]
        on = (expected * inside).sum() / (expected * (inside + outside)).sum()
        said = float(re.search(r"([\d.]+) % of that lies on the object", told)[1])
        assert said == pytest.approx(100 * on, abs=0.7), "covers and weights are bytes here"
        at = np.unravel_index(expected.argmax(), grid)
        assert f"to row {at[0]}, column {at[1]}." in told

    page.locator("#attention-opacity").fill("0")
    image = pixels(page, "attention-photo")
    photo = centres(image, box, grid)[0][..., :3]
    original = np.asarray(Image.open(str(arrays["photo"])).convert("RGB").resize(size, Image.BICUBIC)).astype(int)
    assert np.abs(photo - centres(original, box, grid)[0]).mean() < 12, "the photo itself, but for JPEG and resizing"
    y, x = np.mgrid[:size[1], :size[0]]
    unseen = (x < box[0] - 1) | (y < box[1] - 1) | (x > box[2] + 1) | (y > box[3] + 1)
    assert unseen.mean() > 0.01
    assert np.abs(image[unseen][:, :3] - 0.35 * original[unseen]).mean() < 8, "dimmed where the model did not see"

    page.locator("#attention-opacity").fill("100")
    layers, heads = arrays["attention_all_scale"].shape
    check(layers - 1, None, None)
    query = (2, 3)
    x, y = ((box[0] + (query[1] + 0.5) * (box[2] - box[0]) / grid[1]) / size[0],
            (box[1] + (query[0] + 0.5) * (box[3] - box[1]) / grid[0]) / size[1])
    point(page, "attention-photo", x, y)
    check(layers - 1, None, query)
    point(page, "attention-heads", 0.5, 0.999)  # off the photo: back to [CLS]
    point(page, "attention-heads", (heads - 0.5) / heads, 0.5 / layers)
    check(0, heads - 1, None)
    assert page.locator("#attention-layer").input_value() == "0"
    assert f"layer 0, head {heads - 1}" in page.locator("#attention-told").text_content()

    point(page, "attention-photo", x, y, "click")
    point(page, "attention-heads", 0.5 / heads, 0.5 / layers)
    check(0, 0, query)  # it was kept
    page.locator("#attention-opacity").fill("60")
    page.locator("#attention-top").fill("40")
    check(0, 0, query, opacity=0.6, top=0.4)
    page.locator("#attention-opacity").fill("100")
    page.locator("#attention-top").fill("100")

    # the overview: all maps of the query, on one square-root scale
    image = pixels(page, "attention-heads")
    high, wide = image.shape[0] / layers, image.shape[1] / heads
    maps = np.stack([[attention_map(arrays, layer, head, query) for head in range(heads)] for layer in range(layers)])
    found, _ = centres(image, (wide * (heads - 1) + 1, high * (layers - 1) + 1, wide * heads - 1, high * layers - 1), grid)
    assert np.abs(found[..., :3] - coloured("inferno", np.sqrt(maps[-1, -1] / maps.max()))).max() <= 12

    page.locator("#attention-head").select_option("0")
    page.locator("#attention-layer").select_option("1")
    page.locator("#attention-photo").focus()
    page.keyboard.press("ArrowDown")
    settled(page)
    check(1, None, (3, 3))
    page.keyboard.press("Escape")
    check(1, None, None)
    page.locator("#attention-photo").press("ArrowLeft")
    check(1, None, (0, 0))
    page.locator("#attention-cls").click()
    check(1, None, None)


@pytest.mark.browser
def test_keys_step_through_the_photos_wrong_ones_first(page, written):
    files = sorted((written / "attention").glob("*.npz"))
    arrays = [dict(np.load(file)) for file in files]
    wrong = [str(one["label"]) != str(one["predicted"]) for one in arrays]
    assert any(wrong) and not all(wrong), "the test needs both"
    for key, expected in (("n", 1), ("n", 2), ("p", 1), ("p", 0), ("p", len(files) - 1)):
        page.locator("#attention-photo").press(key)
        wait_until(page, f"document.getElementById('attention-photo-list').selectedIndex === {expected}")
    wait_until(page, f"document.getElementById('attention-told').textContent.includes('{float(arrays[-1]['confidence']):.2f}')")
    page.locator("#attention-wrong").check()
    shown = page.locator("#attention-photo-list option").all_text_contents()
    first = [f"{file.stem} (wrong)" for file, is_wrong in zip(files, wrong) if is_wrong]
    assert shown == first + [file.stem for file, is_wrong in zip(files, wrong) if not is_wrong]
    wait_until(page, "document.getElementById('attention-told').textContent.includes('which is wrong: it is')")
    page.locator("#attention [data-step='1']").click()
    assert page.locator("#attention-photo-list").input_value() == "1"


@pytest.mark.browser
def test_pointing_at_a_word_shows_its_map(page, written):
    file = sorted((written / "captions").glob("*.json"))[0]
    told, maps = json.loads(file.read_text()), np.load(file.with_suffix(".npz"))["attention_all"]
    tokens = told["tokens"][:-1] + ["[end]"]
    box, _ = canvas_box(page, "captions", 0)
    grid = maps.shape[2:]
    buttons = page.locator("#captions-tokens button")
    assert buttons.all_text_contents() == tokens
    page.locator("#captions-opacity").fill("0")
    photo, inside = centres(pixels(page, "captions-photo"), box, grid)
    photo = photo[..., :3]
    page.locator("#captions-opacity").fill("100")

    def check(layer, parts):
        found, _ = centres(pixels(page, "captions-photo"), box, grid)
        expected = maps[layer][parts].mean(0)
        assert np.abs(found[..., :3] - shown_over(photo, expected[inside[0], inside[1]], expected.max(), 1)).max() <= 8
        probability = np.exp(sum(told["log_probs"][t] for t in parts))
        assert f"probability {probability:.2f}, layer {layer}" in page.locator("#captions-told").text_content()

    buttons.nth(2).hover()
    check(len(maps) - 1, [2])
    buttons.nth(2).focus()
    page.keyboard.press("ArrowRight")
    check(len(maps) - 1, [3])
    assert buttons.nth(3).get_attribute("aria-pressed") == "true"
    page.keyboard.press("Home")
    page.keyboard.press("ArrowLeft")
    check(len(maps) - 1, [0])
    page.keyboard.press("End")
    check(len(maps) - 1, [len(tokens) - 1])
    assert len(maps) == 2
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
def test_a_cell_of_the_confusions_shows_its_photos(page, written):
    arrays = dict(np.load(written / "two" / "eval.npz"))
    probabilities, targets = arrays["probabilities"], arrays["targets"]
    page.locator("#matrix").select_option("1")
    predicted = probabilities.argmax(1)
    target, guess = int(targets[0]), int(predicted[0])
    cell = page.locator(f"[data-matrix='1'] [data-cell='{target}-{guess}']")
    own = [i for i in range(len(targets)) if (targets[i], predicted[i]) == (target, guess)]
    own.sort(key=lambda i: -probabilities[i].max())
    assert cell.text_content() == str(len(own))
    cell.click()
    assert page.locator("#behind li").all_text_contents() == [
        f"{arrays['names'][i]}, {probabilities[i].max():.2f}" for i in own]
    shown = page.locator("#behind img").first
    assert shown.evaluate("image => image.decode().then(() => image.naturalWidth)") > 20
    address = shown.get_attribute("src")
    small = Image.open(io.BytesIO(base64.b64decode(address.split(",")[1])))
    photo = Image.open(Path(str(arrays["folder"])) / str(arrays["names"][own[0]])).convert("RGB").resize(small.size)
    assert np.abs(np.asarray(small, dtype=int) - np.asarray(photo, dtype=int)).mean() < 12

    filled = sorted({(int(t), int(p)) for t, p in zip(targets, predicted)})
    (row, column), below = next(((row, column), below) for row, column in filled for below, _ in
                                [cell for cell in filled if cell[1] == column and cell[0] > row])
    page.locator(f"[data-matrix='1'] [data-cell='{row}-{column}']").focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.dataset.cell") == f"{below}-{column}"
    page.keyboard.press("Enter")
    assert page.locator("#behind h4").text_content() == page.evaluate("document.activeElement.getAttribute('aria-label')")


@pytest.mark.browser
def test_names_of_strangers_are_text(page):
    assert page.locator("img[src=x]").count() == 0
    assert HOSTILE in page.locator("[data-matrix='0'] tbody th").first.text_content()


@pytest.mark.browser
def test_everything_has_a_name_and_can_be_reached_by_the_keyboard(page):
    nameless = page.evaluate("""[...document.querySelectorAll("button, select, input, canvas[role], [role=region]")]
        .filter(each => !(each.getAttribute("aria-label") || each.textContent.trim() || [...each.labels ?? []].length))
        .map(each => each.outerHTML)""")
    assert nameless == []
    reached = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"positions-grid", "positions-map", "attention-photo", "attention-heads", "attention-layer", "attention-head",
            "attention-cls", "attention-opacity", "attention-top", "captions-layer", "captions-words", "matrix"} <= reached


@pytest.mark.browser
def test_the_last_photo_asked_for_is_the_one_shown(page, written):
    """However long the others take to come."""
    files = sorted((written / "attention").glob("*.npz"))
    page.evaluate("""() => {
        const inflate = DecompressionStream;
        let wait = 400;
        window.DecompressionStream = function (kind) {
            const inner = new inflate(kind), own = wait;
            const delay = new TransformStream({flush: () => new Promise(done => setTimeout(done, own))});
            wait = 0;  // the first one takes longest
            return {readable: inner.readable.pipeThrough(delay), writable: inner.writable};
        };
    }""")
    page.locator("#attention-photo").press("n")
    page.locator("#attention-photo").press("n")
    page.locator("#attention-opacity").fill("0")
    time.sleep(0.8)
    assert page.evaluate("document.getElementById('attention-photo-list').selectedIndex") == 2
    image, apart = pixels(page, "attention-photo"), []
    for i in (1, 2):
        box, size = canvas_box(page, "attention", i)
        if size != [image.shape[1], image.shape[0]]:
            apart.append(255)
            continue
        original = np.asarray(Image.open(str(np.load(files[i])["photo"])).convert("RGB").resize(size, Image.BICUBIC))
        grid = np.load(files[i])["attention"].shape
        apart.append(np.abs(centres(image, box, grid)[0][..., :3] - centres(original.astype(int), box, grid)[0]).mean())
    assert apart[1] < 12 < apart[0]


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone_or_lost_on_a_projector(browser, html, scheme):
    for width in (360, 1280, 1920):
        opened = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        opened.goto(html.as_uri())
        wait_until(opened, "document.getElementById('attention-told').textContent")
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        background = opened.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (max(map(int, re.findall(r"\d+", background)[:3])) < 60) == (scheme == "dark")
        for canvas in ("positions-map", "attention-photo", "captions-photo"):
            assert opened.locator(f"#{canvas}").bounding_box()["width"] >= min(280, width)
        opened.close()


@pytest.mark.browser
def test_opening_and_pointing_are_timed(browser, html, monkeypatch):
    from benchmarks import page as timed

    monkeypatch.setattr(timed, "MOVES", 5)
    rows = list(timed.page_rows(browser, html, 1))
    assert len(rows) == 1 + len(timed.CANVASES) and all(row.value > 0 for row in rows)
