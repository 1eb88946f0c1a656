"""What report_page.py makes of the other scripts' files: tables, bytes and one text; without a browser."""

import base64
import io
import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import page
from common.errors import BadInput
from compare.runs import Study
from page import attention, captions, positions, results
from page.packing import as_bytes, deflated, photo_with_box
from page.render import as_html
from page.section import Section, Table, open_photo, percent
from tests.helpers.run_folders import write_run

MUCH_ROOM = 10**9  # characters
HOSTILE = "</script><img src=x onerror=alert(1)>"


def cells(table):
    """The rows of a Table by their names."""
    return {name: list(values) for name, *values in table.rows}


# Texts and bytes --------------------------------------------------------------------------------------------


def test_bytes_are_the_values_within_half_a_step():
    values = np.random.default_rng(0).uniform(-0.5, 2, (3, 4, 5)).astype(np.float32)
    packed, scale = as_bytes(values, -0.5)
    assert packed.dtype == np.uint8 and scale.shape == (3,)
    assert (np.abs(-0.5 + scale[:, None, None] * packed - values) <= scale[:, None, None] / 2 + 1e-6).all()
    assert (as_bytes(np.zeros((2, 2)))[0] == 0).all()
    assert zlib.decompress(base64.b64decode(deflated(packed))) == packed.tobytes()


def test_a_box_keeps_its_place_on_a_photo_of_another_size():
    fields = photo_with_box(Image.new("RGB", (400, 200)), [100, 50, 300, 200], 100)
    assert fields["size"] == [100, 50] and fields["box"] == [25, 12.5, 75, 50]
    assert photo_with_box(Image.new("RGB", (10, 5)), [0] * 4, 99)["size"] == [30, 15], "threefold at most"
    fields = photo_with_box(Image.new("RGB", (1000, 1)), [0, 0, 1000, 1], 100)
    assert fields["size"] == [100, 1] and fields["box"] == [0, 0, 100, 1], "a side has a pixel at least"


def test_the_page_holds_what_its_sections_give_and_no_markup_of_strangers():
    table = Table(HOSTILE, ["setting", HOSTILE], [[HOSTILE, 1]])
    model = {"title": HOSTILE, "grid": [2, 2], "low": 0, "scale": 1, "blob": "similarity-0"}
    section = Section("positions", "Positions", table, {"models": [model]}, {"similarity-0": "AAAA"})
    html = as_html("Title", [section])
    assert HOSTILE not in html and html.count("&lt;/script&gt;&lt;img") == 5
    assert '<script type="application/octet-stream" id="similarity-0">AAAA</script>' in html
    assert "function positions(" in html and "function attention(" not in html


def contrast(one, other):
    """WCAG 2's contrast of two colours such as #fff."""
    def luminance(colour):
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        channels = [int(digits[i:i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
                  for value in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_text_has_contrast_in_light_and_dark():
    style = Path(page.__file__).with_name("page.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    assert len(blocks) == 2
    for theme in (dict(re.findall(r"--(\w+): (#\w+)", block)) for block in blocks):
        for text in ("ink", "quiet", "accent"):
            assert contrast(theme[text], theme["page"]) >= 4.5
            assert contrast(theme[text], theme["panel"]) >= 4.5
        assert contrast(theme["focus"], theme["page"]) >= 3


def test_photos_are_found_where_they_were_or_by_their_names(tmp_path):
    for folder, colour in (("old", "red"), ("new", "blue"), ("new/0", "lime")):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (9, 9), colour).save(tmp_path / folder / "1.png")
    assert open_photo(tmp_path / "old" / "1.png", [tmp_path / "new"]).getpixel((0, 0)) == (255, 0, 0)
    assert open_photo("/nowhere/1.png", [tmp_path / "new"]).getpixel((0, 0)) == (0, 0, 255)
    assert open_photo("/nowhere/0/1.png", [tmp_path / "new"], "0/1.png").getpixel((0, 0)) == (0, 255, 0)
    with pytest.raises(BadInput, match="does not exist any more: name the folder .* with --images"):
        open_photo("/nowhere/2.png", [tmp_path / "new"])
    (tmp_path / "new" / "2.png").write_bytes(b"no photo")
    with pytest.raises(BadInput, match="new/2.png cannot be decoded"):
        open_photo("/nowhere/2.png", [tmp_path / "new"])


# Position embeddings ----------------------------------------------------------------------------------------


def similarity_of(height, width, seed):
    embedding = np.random.default_rng(seed).normal(size=(height * width, 5))
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    return (embedding @ embedding.T).reshape(height, width, height, width).astype(np.float32)


def test_the_table_of_positions_has_the_means_over_pairs_of_patches():
    similarities = [similarity_of(3, 4, seed) for seed in (1, 2)]
    table = positions.summary(["one", "two"], similarities, [0.123, 0.1231])
    assert table.header == ["", "one", "two", "by chance"]
    rows, patches = cells(table), [(y, x) for y in range(3) for x in range(4)]
    for i, similarity in enumerate(similarities):
        pairs = [(one, other) for one in patches for other in patches if one != other]

        def mean(chosen, pairs=pairs, similarity=similarity):
            return f"{np.mean([similarity[one + other] for one, other in pairs if chosen(*one, *other)]):.3f}"

        assert rows["within a row"][i] == mean(lambda y, x, v, u: y == v)
        assert rows["within a column"][i] == mean(lambda y, x, v, u: x == u)
        assert rows["elsewhere"][i] == mean(lambda y, x, v, u: y != v and x != u)
        for name, steps in (("one step apart", 1), ("half the diagonal apart", 3)):
            assert rows[name][i] == mean(lambda y, x, v, u, d=steps: round(np.hypot(y - v, x - u)) == d)
        assert rows["the least similar two patches"][i] == f"{similarity.min():.3f}"
        nearest = [max((similarity[pair[0] + pair[1]], *pair) for pair in pairs if pair[0] == one)[1:]
                   for one in patches]
        adjacent = np.mean([max(abs(y - v), abs(x - u)) == 1 for (y, x), (v, u) in nearest])
        assert rows["most similar other patch is adjacent"][i] == percent(adjacent)
    chances = [*5 * ["0.000"], "", "12.3 %"]
    assert [row[-1] for row in rows.values()] == chances


# Attention --------------------------------------------------------------------------------------------------


def attention_arrays(seed, label="ring", masked=True, **changed):
    """What p1_viz_attn.py --all writes of a photo: 2 layers, 3 heads, 2 prefix tokens, 3 x 4 patches."""
    rng = np.random.default_rng(seed)
    weights = rng.random((2, 3, 14, 14)) ** 3
    weights /= weights.sum(-1, keepdims=True)
    patches, scale = weights[..., 2:], weights[..., 2:].max(3) / 255
    arrays = {"attention": patches[-1, :, 0].mean(0).reshape(3, 4), "attention_all_scale": scale,
              "attention_all": np.rint(patches / scale[..., None]).astype(np.uint8),
              "attention_cls": weights[:, :, 0].astype(np.float32), "photo": "1.jpg",
              "box": np.array([0, 0, 8, 6]), "model": "best.pt", "predicted": "ring", "confidence": 0.5,
              "label": label}
    if masked:
        cover = np.zeros((3, 4), np.float32)
        cover[0, :2] = 0.5, 1  # or beside it: 2 rows of 3 patches
        arrays.update(object_cover=cover, background_cover=1 - cover)
    return {**arrays, **changed}


def test_the_table_of_attention_has_the_means_over_the_photos():
    photos = [attention_arrays(1), attention_arrays(2, label="star"),
              attention_arrays(3, label="", masked=False)]
    maps = [one["attention_cls"][..., 2:] for one in photos]  # (layers, heads, patches)
    rows = cells(attention.summary(map(attention.photo_numbers, photos), ["best.pt"]))

    def mean(values):
        return percent(np.mean(list(values)))

    shares, areas, peaks = [], [], []
    for values, arrays in zip(maps[:2], photos):
        last, inside = values[-1].mean(0), arrays["object_cover"].ravel()
        shares.append((last * inside).sum() / last.sum())
        areas.append(inside.mean())
        row, column = divmod(last.argmax(), 4)
        peaks.append(row <= 1 and column <= 2)
    assert rows["on the object, last layer"] == [mean(shares), mean(areas), 2]
    assert rows["peak on the object or beside it, last layer"] == [mean(peaks), "50.0 %", 2]
    for layer, name in ((0, "first"), (1, "last")):
        assert rows[f"on the most attended tenth of patches, {name} layer"] == [
            mean(one[layer].mean(0).max() / one[layer].mean(0).sum() for one in maps), percent(1 / 12), 3]
    head_peaks = [[head.max() / head.sum() for head in one[-1]] for one in maps]
    assert rows["on the most attended patch, most even head, last layer"] == [
        mean(map(min, head_peaks)), percent(1 / 12), 3]
    assert rows["on the most attended patch, sharpest head, last layer"] == [
        mean(map(max, head_peaks)), percent(1 / 12), 3]
    itself = mean(one["attention_cls"][-1, :, 0].mean() for one in photos)
    assert rows["on [CLS] itself, last layer"] == [itself, percent(1 / 14), 3]
    assert rows["class predicted right"] == ["50.0 %", "", 2]


def test_the_script_gets_the_photo_of_each_file_and_its_covers(tmp_path):
    Image.new("RGB", (16, 12), "red").save(tmp_path / "1.jpg")
    np.savez(tmp_path / "a.npz", **attention_arrays(1))
    np.savez(tmp_path / "b.npz", **attention_arrays(2, masked=False, predicted="", label=""))
    np.savez(tmp_path / "others.npz", similarity=np.zeros(3))
    section = attention.section([tmp_path], [tmp_path], MUCH_ROOM)
    second, first = section.data["photos"]
    assert [first["name"], second["name"]] == ["a", "b"], "one's own, of no known class, come first"
    assert first["size"] == [48, 36] and first["box"] == [0, 0, 24, 18]
    assert [first[name] for name in ("layers", "heads", "tokens", "prefix", "grid")] == [2, 3, 14, 2, (3, 4)]
    assert np.frombuffer(base64.b64decode(first["object"]), np.float32).tolist() == [0.5, 1, *10 * [0]]
    assert "object" not in second
    section.data["photos"] = [second]
    assert "Wrong predictions first" not in as_html("Title", [section]), "nobody knows what is on it"
    section.data["photos"] = [first, second]
    assert "Wrong predictions first" in as_html("Title", [section])
    attention_all = zlib.decompress(base64.b64decode(section.blobs[second["blob"]]))
    assert attention_all == attention_arrays(2)["attention_all"].tobytes()


def test_what_does_not_fit_in_full_is_shown_in_brief(tmp_path):
    """One's own photo first, then the surest mistake, then the surest and the least sure right answer."""
    Image.new("RGB", (200, 150), "red").save(tmp_path / "1.jpg")
    answers = {"right-80": ("ring", 0.8), "right-60": ("ring", 0.6), "right-99": ("ring", 0.99),
               "wrong-50": ("star", 0.5), "wrong-90": ("star", 0.9), "own": ("", 0.3)}
    for seed, (name, (label, confidence)) in enumerate(answers.items()):
        arrays = attention_arrays(seed, label=label, confidence=confidence, box=np.array([25, 0, 175, 150]))
        np.savez(tmp_path / f"{name}.npz", **arrays)
    preferred = ["own", "wrong-90", "wrong-50", "right-99", "right-60", "right-80"]
    all_in_full = attention.section([tmp_path], [tmp_path], MUCH_ROOM)

    def full(section):
        return {photo["name"] for photo in section.data["photos"] if "blob" in photo}

    def size(section):
        return len(json.dumps(section.data["photos"])) + sum(map(len, section.blobs.values()))

    assert full(all_in_full) == {*preferred}
    for room, kept in ((0, 3), (size(all_in_full) - 100, 5)):
        section = attention.section([tmp_path], [tmp_path], room)
        names = [photo["name"] for photo in section.data["photos"]]
        assert full(section) == {*preferred[:kept]} == {*names[:kept]} and len(section.blobs) == kept
        assert {*names} == {*preferred} and (kept == 3 or size(section) <= room)
        assert f"{kept} of 6 photos" in as_html("Title", [section])
    assert "photos, the first of the list" not in as_html("Title", [all_in_full])

    brief, arrays = section.data["photos"][-1], attention_arrays(0)
    assert brief["name"] == "right-80" and brief["only"] == {"layer": 1, "head": "mean of 3"}
    drawn = brief["scale"] * np.frombuffer(base64.b64decode(brief["cls"]), np.uint8)
    np.testing.assert_allclose(drawn.reshape(3, 4), arrays["attention"], atol=brief["scale"] / 2 + 1e-7)
    assert Image.open(io.BytesIO(base64.b64decode(brief["photo"].partition(",")[2]))).size == (96, 72)
    assert brief["size"] == [288, 216] and brief["box"] == [36, 0, 252, 216]
    shares = (arrays["attention"] * arrays["object_cover"]).sum() / arrays["attention"].sum(), 1.5 / 12
    assert brief["on_object"] == pytest.approx(shares)


def test_photos_of_the_first_of_several_folders_come_first(tmp_path):
    Image.new("RGB", (16, 12), "red").save(tmp_path / "1.jpg")
    for folder, label in (("all", "star"), ("mine", "ring")):
        (tmp_path / folder).mkdir()
        np.savez(tmp_path / folder / f"{folder}.npz", **attention_arrays(1, label=label))
    for first, second in (("mine", "all"), ("all", "mine")):
        section = attention.section([tmp_path / first, tmp_path / second], [tmp_path], 0)
        assert [photo["name"] for photo in section.data["photos"]] == [first, second]


def test_photos_in_subfolders_keep_them(tmp_path):
    """Each gets its own photo where the data set was moved, and other scripts' folders do not count."""
    for name, colour in (("0/1.jpg", "red"), ("1/1.jpg", "blue"), ("2.jpg", "lime")):
        (tmp_path / "moved" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 12), colour).save(tmp_path / "moved" / name)
    figures = tmp_path / "figures"
    for folder in ("0", "1", "rollout"):
        (figures / "attention" / folder).mkdir(parents=True)
        (figures / "captions" / folder).mkdir(parents=True)
    for name in ("0/1", "1/1", "2"):
        photo = f"/gone/{name}.jpg"
        np.savez(figures / "attention" / f"{name}.npz", **attention_arrays(1, photo=photo))
        write_caption(figures / "captions", name, ["dog"], maps_with_peaks((2, 0.3)), photo)
    np.savez(figures / "attention" / "rollout" / "2.npz", attention=np.zeros((3, 4)))
    np.savez(figures / "attention" / "rollout" / "3.npz", **attention_arrays(1, photo="/gone/3.jpg"))
    (figures / "captions" / "rollout" / "3.json").write_text("{")
    for view in (attention, captions):
        drawn, room = figures / view.__name__.split(".")[1], [MUCH_ROOM] * (view is attention)
        photos = view.section([drawn], [tmp_path / "moved"], *room).data["photos"]
        assert [photo["name"] for photo in photos] == ["2", "0/1", "1/1"]
        pixels = [Image.open(io.BytesIO(base64.b64decode(photo["photo"].partition(",")[2]))).getpixel((9, 9))
                  for photo in photos]
        assert [np.argmax(pixel) for pixel in pixels] == [1, 0, 2], "green, red, blue"


@pytest.mark.parametrize("changed", [
    {"attention_all": np.zeros((2, 3, 14, 13), np.uint8)}, {"attention_all_scale": np.ones((2, 14))},
    {"attention_all": np.zeros((2, 3, 12, 12), np.uint8)}, {"attention_all": np.zeros((3, 14, 12), np.uint8)},
    {"attention_all": np.zeros((2, 3, 14, 14), np.uint8), "attention_all_scale": np.ones((2, 3))},
    {"attention_cls": np.ones((2, 3, 12), np.float32)},
])
def test_arrays_that_do_not_fit_each_other_are_refused(tmp_path, changed):
    np.savez(tmp_path / "a.npz", **attention_arrays(1, **changed))
    with pytest.raises(BadInput, match="a.npz does not hold all layers.*p1_viz_attn.py --all"):
        attention.section([tmp_path], [], MUCH_ROOM)


def test_arrays_without_all_layers_and_damaged_ones_are_refused(tmp_path):
    file = tmp_path / "a.npz"
    for missing in ("attention_all", "attention_all_scale", "attention_cls", "photo",
                    "label"):
        np.savez(file, **{name: value for name, value in attention_arrays(1).items() if name != missing})
        with pytest.raises(BadInput, match="a.npz does not hold all layers"):
            attention.read_arrays(file)
    np.savez(file, **attention_arrays(1))
    file.write_bytes(file.read_bytes()[:-3000])
    with pytest.raises(BadInput, match="a.npz does not hold all layers"):
        attention.read_arrays(file)
    with pytest.raises(BadInput, match="a.npz holds no similarities"):
        positions.section(file)
    np.savez(file, titles=["one"], similarity=np.zeros((2, 3, 3, 2)), adjacent_by_chance=[0.1])
    with pytest.raises(BadInput, match="a.npz holds no similarities"):
        positions.section(file)
    with pytest.raises(BadInput, match="no arrays of p1_viz_attn.py are there"):
        attention.section([tmp_path], [], MUCH_ROOM)


# Captions ---------------------------------------------------------------------------------------------------


def write_caption(folder, name, tokens, maps, photo="1.jpg"):
    caption = {"photo": photo, "box": [0, 0, 16, 12], "tokens": tokens, "log_probs": [-0.5] * len(tokens)}
    (folder / f"{name}.json").write_text(json.dumps(caption))
    np.savez(folder / f"{name}.npz", attention_all=maps)


def maps_with_peaks(*peaks):
    """Maps (2 layers, T, 2, 2) whose peak in the last layer is (cell, value); all else is even."""
    maps = np.full((2, len(peaks), 4), 0.25, np.float32)
    for t, (cell, value) in enumerate(peaks):
        maps[1, t] = (1 - value) / 3
        maps[1, t, cell] = value
    return maps.reshape(2, len(peaks), 2, 2)


def test_the_table_of_captions_has_their_probability_and_peaks(tmp_path):
    Image.new("RGB", (16, 12), "red").save(tmp_path / "1.jpg")
    write_caption(tmp_path, "a", ["ski", "##s", "[SEP]"], maps_with_peaks((0, 0.4), (0, 0.9), (3, 0.5)))
    write_caption(tmp_path, "b", ["dog"], maps_with_peaks((2, 0.3)))
    (tmp_path / "other.json").write_text("{}")
    section = captions.section([tmp_path], [tmp_path])
    assert cells(section.summary) == {
        "probability of a token, mean": [f"{np.exp(-0.5):.2f}", ""],
        "peak in another cell than for the token before": ["50.0 %", "75.0 %"],
        "peak of the sharpest map, “##s” in a": ["90.0 %", "25.0 %"],
        "peak of the most even map, “dog” in b": ["30.0 %", "25.0 %"]}
    photo = section.data["photos"][0]
    assert photo["words"] == [{"text": "skis", "tokens": [0, 1]}, {"text": "[end]", "tokens": [2]}]
    assert photo["tokens"][2] == {"text": "[end]", "tokens": [2]} and section.context["pointing_game"] is None


def test_captions_of_one_token_have_no_moves(tmp_path):
    write_caption(tmp_path, "b", ["dog"], maps_with_peaks((2, 0.3)))
    file = tmp_path / "b.json"
    assert len(captions.summary({file: captions.read_caption(file)}).rows) == 3


@pytest.mark.parametrize("damage", [
    lambda file: file.with_suffix(".npz").write_bytes(file.with_suffix(".npz").read_bytes()[:100]),
    lambda file: np.savez(file.with_suffix(".npz"), attention=np.zeros((1, 2, 2))),
    lambda file: np.savez(file.with_suffix(".npz"), attention_all=np.zeros((1, 2, 2))),
    lambda file: np.savez(file.with_suffix(".npz"), attention_all=np.zeros((2, 5, 2, 2))),
    lambda file: file.write_text("[]"), lambda file: file.write_text("{"),
    lambda file: file.write_text('{"tokens": 1}'),
])
def test_captions_without_all_layers_and_damaged_ones_are_refused(tmp_path, damage):
    write_caption(tmp_path, "b", ["dog"], maps_with_peaks((2, 0.3)))
    damage(tmp_path / "b.json")
    with pytest.raises(BadInput, match="b.json does not come with all layers.*p2_caption_viz.py --all"):
        captions.section([tmp_path], [])


def test_a_folder_without_captions_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no captions of p2_caption_viz.py are there"):
        captions.section([tmp_path], [])


def test_the_pointing_game_is_a_row_a_word_class(tmp_path):
    file = tmp_path / "scores.json"
    row = {"tokens": 9, "hit": 0.9, "chance": 0.3, "mass": 0.4, "area": 0.1, "elsewhere": 0.2}
    file.write_text(json.dumps({"photos": 1000, "exact": 0.5, "pointing": {"colour": row}}))
    table = captions.read_pointing_game(file)
    assert "1,000 scenes" in table.caption and "50.0 %" in table.caption
    assert dict(zip(table.header[1:], table.rows[0][1:])) == {
        "tokens": 9, "peak on the object": "90.0 %", "by chance": "30.0 %", "attention on it": "40.0 %",
        "by chance (area)": "10.0 %"}
    file.write_text(json.dumps({"photos": 1000, "exact": 0.5, "pointing": {}}))
    assert captions.read_pointing_game(file) is None
    for text in ("{}", "[]", "no JSON", '{"photos": 1, "exact": 1, "pointing": {"colour": {"tokens": 1}}}'):
        file.write_text(text)
        with pytest.raises(BadInput, match="scores.json is no result of p2_eval.py --json"):
            captions.read_pointing_game(file)


# Results ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two seeds of one setting and one of another, on 6 photos of 3 classes."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "photos").mkdir()
    for i in range(6):
        Image.new("RGB", (16, 12), (40 * i, 0, 0)).save(folder / "photos" / f"{i % 3}_{i}.jpg")
    common = {"confidence": np.array([0.5, 0.6, 0.7, 0.8, 0.9, 0.95]), "images": folder / "photos"}
    return Study([write_run(folder / "a", [1, 1, 1, 0, 1, 1], seed=0, **common),
                  write_run(folder / "b", [0, 1, 1, 0, 1, 1], seed=1, **common),
                  write_run(folder / "c", [1, 1, 1, 1, 1, 1], lr=1e-3, **common)])


@pytest.fixture(scope="module")
def results_section(study):
    return results.section(study, [])


def test_the_table_of_results_has_the_means_over_seeds(study):
    first, second = cells(results.summary(study.settings)).values()
    # 5 and 4 of 6 are right; the mean confidence is 0.742
    assert first[0] == "75.0 %" and first[2] == "33.3 %" and first[4] == "underconfident by 0.8 points"
    assert first[5] == "beagle and pug: 1.5 of 4", "of photos 0 and 3, in one seed and in both"
    assert second[0] == "100.0 %" and second[4] == "underconfident by 25.8 points" and second[5] == ""


def test_a_cell_of_the_matrix_has_its_photos_the_surest_first(results_section):
    matrix, cells = results_section.context["matrices"][0], results_section.data["cells"][0]
    assert matrix["names"] == ["beagle", "pug", "sphynx"] and matrix["left_out"] == 0
    assert matrix["rows"][0] == [{"count": "0.5", "share": 0.25}, {"count": "1.5", "share": 0.75}, None]
    thumbnails, names, probabilities = zip(*cells["0-1"]["photos"])
    assert names == ("0_3.jpg", "0_0.jpg") and probabilities == pytest.approx([0.8, 0.5])
    assert cells["0-1"]["total"] == 2
    photos = results_section.data["photos"]
    assert len(photos) == 6, "each photo once, however many cells show it"
    file = io.BytesIO(base64.b64decode(photos[thumbnails[0]].split(",")[1]))
    assert abs(Image.open(file).getpixel((0, 0))[0] - 120) < 6


def test_differences_are_rows_with_their_margin(results_section):
    differences = results_section.context["differences"]
    (row,) = differences.rows
    assert row[2].startswith("-25.0 ±"), "75 and 100 % of 6 photos"
    assert row[differences.header.index("verdict")] == "within the noise"


def test_claims_are_rows_with_their_verdict(results_section):
    claims = results_section.context["claims"]
    assert claims.header[:2] == ["claim", "verdict"]
    assert {len(row) for row in claims.rows} == {len(claims.header)}
    assert {row[1] for row in claims.rows} <= {"supported", "not supported", "these runs do not say"}
