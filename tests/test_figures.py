import numpy as np
import pytest
import torch
from PIL import Image

import p1_viz_attn
import p1_viz_posembed
from datasets import decode, transforms
from interpret.attention import attention_maps, rollout
from models import vit
from models.checkpoint import open_checkpoint
from plots.attention import Seen, draw_heads, draw_rows
from plots.posembed import draw_similarities, mosaic


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
    random = {name: np.stack([np.add(value, shift) for shift in (-0.01, 0.02)]) for name, value in statistics(0.0).items()}
    draw_similarities(similarities, [statistics(0.3), statistics(0.4)], {"2 random embeddings": random}, ["one", "two"], tmp_path / "figure.png")
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
    assert one.get_xdata().tolist() == [1, 2] and two.get_ydata().tolist() == [0.5, 0.1] and zero.get_ydata() == [0, 0]
    assert [text.get_text() for text in lower.legends[0].get_texts()] == [
        f"{name}\nmost similar one adjacent: 50%" for name in ("one", "two", "2 random embeddings")]


def test_the_map_lies_on_the_box_and_the_rest_is_dimmed(drawn, tmp_path):
    photo = np.full((60, 100, 3), 200, np.uint8)
    attention = np.zeros((4, 4), np.float32)
    attention[1, 2] = 0.5
    draw_rows([(Seen(photo, (20, 0, 80, 60)), attention, "a heading")], tmp_path / "figure.png")
    figure = drawn[0]
    photo_axes, map_axes, over_axes, bar = figure.axes
    assert map_axes.images[0].get_extent() == over_axes.images[1].get_extent() == [20, 80, 60, 0]
    assert map_axes.images[0].get_clim() == over_axes.images[1].get_clim() == (0, 0.5)
    assert np.array_equal(map_axes.images[0].get_array(), attention)
    for axes in (photo_axes, map_axes, over_axes):
        assert axes.get_xlim() == (0, 100) and axes.get_ylim() == (60, 0)
    assert photo_axes.get_title() == "a heading" and "attention" in bar.get_ylabel()

    # what a reader sees
    colour = seen_at(over_axes, tmp_path / "figure.png")
    assert np.allclose(colour(10, 30), 200 * 0.35, atol=2) and np.allclose(colour(90, 30), 200 * 0.35, atol=2)
    assert np.allclose(colour(25, 50), 200, atol=2), "no attention: the photo as it is"
    assert np.abs(colour(57.5, 22.5) - 200).max() > 40, "row 1, column 2 of 4 on 20..80: its centre is (57.5, 22.5)"


def seen_at(axes, path):
    """A function from a photo's (x, y) to the colour there in a saved picture of the axes, as an int array (3,)."""
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)

    def colour(x, y):
        column, row = axes.transData.transform((x, y)) * 180 / axes.figure.dpi
        return picture[picture.shape[0] - 1 - int(row), int(column)]

    return colour


def test_rows_share_one_scale_in_the_order_given(drawn, tmp_path):
    seen = [Seen(np.zeros((40, 60, 3), np.uint8), (0, 0, 60, 40)), Seen(np.zeros((90, 30, 3), np.uint8), (-5, 20, 35, 60))]
    maps = [np.full((2, 3), 0.2), np.full((4, 4), 0.6)]
    draw_rows([(seen[0], maps[0], "first"), (seen[1], maps[1], "second")], tmp_path / "f.png", "nearest", heading="both")
    panels = drawn[0].axes[:6]
    assert [panels[0].get_title(), panels[3].get_title(), drawn[0].get_suptitle()] == ["first", "second", "both"]
    assert all(axes.images[-1].get_clim() == (0, 0.6) for axes in (panels[1], panels[2], panels[4], panels[5]))
    assert panels[5].images[1].get_interpolation() == "nearest"
    assert panels[3].get_xlim() == (-5, 35) and panels[3].get_ylim() == (90, 0), "padding that the model saw is shown"


def test_heads_stand_side_by_side_and_blocks_below_each_other(drawn, tmp_path):
    seen = Seen(np.zeros((40, 60, 3), np.uint8), (10, 0, 50, 40))
    maps = np.arange(8).reshape(8, 1, 1) * np.full((1, 2, 2), 0.1)
    draw_heads(seen, [("", maps)], "one block", tmp_path / "one.png")
    shown = [axes for axes in drawn[0].axes[:-1] if axes.images]
    assert [axes.get_title() for axes in shown] == [f"head {i}" for i in range(8)]
    assert all(np.allclose(axes.images[1].get_array(), i * 0.1) for i, axes in enumerate(shown))
    assert all(axes.images[1].get_clim() == (0, maps.max()) for axes in shown)
    draw_heads(seen, [("block 0", maps[:3]), ("block 1", maps[3:6])], "two", tmp_path / "two.png", "nearest")
    shown = [axes for axes in drawn[1].axes[:-1] if axes.images]
    assert [axes.get_ylabel() for axes in shown] == ["block 0", "", "", "block 1", "", ""]
    assert np.allclose(shown[4].images[0].get_array(), 0.4) and drawn[1].get_suptitle() == "two"


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_posembed_writes_the_picture_and_its_array(run, tmp_path, capsys, suffix):
    output = tmp_path / "new" / f"figure.{suffix}"
    arguments = ["--checkpoint", str(run / "best.pt"), "--checkpoint", str(run / "last.pt"), "--output", str(output)]
    assert p1_viz_posembed.main([*arguments, "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[:2] == ["same row", "same column"] and "best.pt" in lines[1] and "last.pt" in lines[2]
    assert "mean of 100 random embeddings, 10x10 of 64" in lines[3] and len(lines) == 6
    with np.load(output.with_suffix(".npz")) as arrays:
        assert sorted(arrays) == ["similarity", "similarity_1", "titles"]
        assert [title.rpartition("/")[2] for title in arrays["titles"]] == ["best.pt", "last.pt"]
        similarity = arrays["similarity"]
    embedding = torch.load(run / "best.pt", weights_only=True)["state_dict"]["pos_embed"][0, 1:]
    expected = torch.cosine_similarity(embedding[:, None], embedding[None], dim=-1).reshape(10, 10, 10, 10)
    np.testing.assert_allclose(similarity, expected, atol=1e-5)
    assert similarity.dtype == np.float32 and output.stat().st_size > 5000


def test_posembed_puts_names_and_checkpoints_side_by_side(run, tmp_path, drawn):
    torch.save(vit.build("test_vit4", 3).state_dict(), tmp_path / "weights.pt")
    assert p1_viz_posembed.main(["--checkpoint", str(run / "best.pt"), "--arch", "test_vit4", "--weights",
                                 str(tmp_path / "weights.pt"), "--output", str(tmp_path / "f.png"), "--device", "cpu"]) == 0
    assert [axes.get_title() for axes in drawn[0].subfigs[0].axes[:2]] == ["test_vit4\nweights.pt", "test_vit\noutput/best.pt"]
    labels = [text.get_text() for text in drawn[0].subfigs[1].legends[0].get_texts()]
    assert [label.partition("\n")[0] for label in labels[2:]] == [
        f"100 random embeddings, 10x10 of {width}" for width in (96, 64)]


def test_attn_writes_the_picture_and_its_arrays(run, shapes, tmp_path):
    photos = [shapes / "val" / "0_0.jpg", shapes / "val" / "2_1.jpg"]
    arguments = [*map(str, photos), "--checkpoint", str(run / "best.pt"), "--output-dir", str(tmp_path / "new")]
    assert p1_viz_attn.main([*arguments, "--all", "--batch-size", "1", "--device", "cpu"]) == 0
    checkpoint = open_checkpoint(run / "best.pt")
    transform = transforms.evaluation_transform(checkpoint.preprocessing)
    inputs = torch.stack([transform(decode.load_image(photo)) for photo in photos])
    _, maps = attention_maps(checkpoint.model, inputs, range(6))
    for i, photo in enumerate(photos):
        assert Image.open(tmp_path / "new" / f"{photo.stem}.png").width > 1000
        with np.load(tmp_path / "new" / f"{photo.stem}.npz") as arrays:
            last = maps[-1][i].numpy()
            np.testing.assert_allclose(arrays["attention_per_head"], last[:, 0, 1:].reshape(2, 10, 10), atol=1e-6)
            np.testing.assert_allclose(arrays["attention"], arrays["attention_per_head"].mean(0), atol=1e-7)
            packed, scale = arrays["attention_all"], arrays["attention_all_scale"]
        assert packed.shape == (6, 2, 101, 101) and packed.dtype == np.uint8 and scale.shape == (6, 2)
        expected = torch.stack([layer[i] for layer in maps]).numpy()
        assert np.abs(packed * scale[:, :, None, None] - expected).max() <= scale.max() / 2 + 1e-6


def test_attn_takes_folders_and_refuses_two_images_of_one_stem(run, shapes, tmp_path, capsys):
    Image.open(shapes / "val" / "0_0.jpg").save(tmp_path / "0_0.png")
    arguments = ["--checkpoint", str(run / "best.pt"), "--output-dir", str(tmp_path / "out"), "--device", "cpu"]
    assert p1_viz_attn.main([str(tmp_path / "0_0.png"), str(shapes / "val"), *arguments]) == 2
    assert "0_0.png and" in capsys.readouterr().err and not (tmp_path / "out").exists()
    (tmp_path / "folder").mkdir()
    for i in range(2):
        Image.new("RGB", (50 + 400 * i, 60)).save(tmp_path / "folder" / f"$5_^$ {i}.png")  # no formula
    assert p1_viz_attn.main([str(tmp_path / "folder"), *arguments]) == 0
    names = [f"$5_^$ {i}.{suffix}" for i in range(2) for suffix in ("npz", "png")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


def test_attn_draws_what_is_asked_for(run, shapes, tmp_path, drawn, capsys):
    names = ["2_1.jpg", "0_0.jpg", "3_2.jpg"]
    photos = [str(shapes / "val" / name) for name in names]

    def draw(output, *flags, photos=photos[1:2]):
        drawn.clear()
        assert p1_viz_attn.main([*photos, "--checkpoint", str(run / "best.pt"), "--output-dir", str(tmp_path / output),
                                 "--device", "cpu", *flags]) == 0
        return np.load(tmp_path / output / "0_0.npz")

    checkpoint = open_checkpoint(run / "best.pt")
    inputs = transforms.evaluation_transform(checkpoint.preprocessing)(decode.load_image(photos[1]))[None]
    _, maps = attention_maps(checkpoint.model, inputs, range(6))
    patches = [block[0, :, 0, 1:].reshape(2, 10, 10).numpy() for block in maps]

    np.testing.assert_allclose(draw("block", "--block", "2", "--sheet", photos=photos)["attention_per_head"], patches[2], atol=1e-6)
    titles = [axes.get_title().partition("\n")[0] for axes in drawn[-1].axes[:9:3]]
    assert titles == ["2_1", "0_0", "3_2"] and (tmp_path / "block" / "contact_sheet.png").exists()
    arrays = draw("blocks", "--blocks", "all", "--format", "pdf")
    np.testing.assert_allclose(arrays["attention_blocks"], np.stack(patches), atol=1e-6)
    np.testing.assert_allclose(arrays["attention"], patches[-1].mean(0), atol=1e-6)
    assert (tmp_path / "blocks" / "0_0.pdf").exists() and len(drawn[0].axes) == 3 * 6 + 1
    draw("heads", "--heads", "--format", "svg", "--interpolation", "nearest")
    assert len(drawn[0].axes) == 2 + 1 and (tmp_path / "heads" / "0_0.svg").exists()
    draw("all heads", "--heads", "--blocks", "all")
    assert len(drawn[0].axes) == 2 * 6 + 1
    arrays = draw("rollout", "--rollout")
    np.testing.assert_allclose(arrays["rollout"], rollout(maps)[0, 0, 1:].reshape(10, 10), atol=1e-6)
    assert np.allclose(drawn[0].axes[1].images[0].get_array(), arrays["rollout"])
    assert draw("larger", "--image-size", "192x256")["attention"].shape == (12, 16)

    capsys.readouterr()
    arrays = draw("meaning", "--masks", str(shapes / "masks" / "val"), "--occlusion")
    said = capsys.readouterr().out
    mask = np.asarray(Image.open(shapes / "masks" / "val" / "0_0.png")) > 0
    left, top, right, bottom = transforms.crop_box(mask.shape[::-1], checkpoint.preprocessing)
    rows = (np.arange(mask.shape[0]) + 0.5 - top) / (bottom - top) * 10
    columns = (np.arange(mask.shape[1]) + 0.5 - left) / (right - left) * 10
    inner = mask[np.ix_((rows >= 0) & (rows < 10), (columns >= 0) & (columns < 10))]
    assert arrays["share_of_area"] == pytest.approx(inner.mean(), abs=0.01), "of what the model saw, pixel by pixel"
    spread = arrays["attention"][np.ix_(rows[(rows >= 0) & (rows < 10)].astype(int), columns[(columns >= 0) & (columns < 10)].astype(int))]
    assert arrays["share_on_object"] == pytest.approx(spread[inner].sum() / spread.sum(), abs=0.01)
    assert arrays["occlusion"].shape == (3, 3) and 0 < arrays["probability"] < 1
    assert "0_0: " in said and "mean of 1: " in said and "% of the attention on the object" in said


def test_attn_keeps_the_users_files(run, shapes, tmp_path, capsys):
    Image.open(shapes / "val" / "2_0.jpg").save(tmp_path / "2_0.png")
    (tmp_path / "masks").mkdir()
    Image.open(shapes / "masks" / "val" / "2_0.png").save(tmp_path / "masks" / "2_0.png")
    before = [(tmp_path / name).read_bytes() for name in ("2_0.png", "masks/2_0.png")]

    def draw(*arguments, times=1):
        return p1_viz_attn.main([*[str(tmp_path / "2_0.png")] * times, "--checkpoint", str(run / "best.pt"), "--device", "cpu",
                                 *map(str, arguments)])

    for arguments in (["--output-dir", tmp_path],
                      ["--output-dir", tmp_path / "masks", "--masks", tmp_path / "masks"]):
        assert draw(*arguments) == 2 and "would overwrite 2_0.png" in capsys.readouterr().err
    assert draw("--output-dir", tmp_path / "out", times=2) == 2, "the same photo twice"
    Image.new("L", Image.open(tmp_path / "2_0.png").size, 3).save(tmp_path / "masks" / "2_0.png")
    assert draw("--output-dir", tmp_path / "out", "--masks", tmp_path / "masks") == 2
    assert "marks neither object nor background" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert before[0] == (tmp_path / "2_0.png").read_bytes()


def test_attn_shows_no_prediction_of_a_head_that_the_weights_lack(shapes, tmp_path, drawn, capsys):
    weights = {key: value for key, value in vit.build("test_vit").state_dict().items() if not key.startswith("head.")}
    torch.save(weights, tmp_path / "backbone.pt")
    arguments = [str(shapes / "val" / "2_0.jpg"), "--arch", "test_vit", "--weights", str(tmp_path / "backbone.pt"),
                 "--output-dir", str(tmp_path / "out"), "--device", "cpu"]
    assert p1_viz_attn.main(arguments) == 0
    assert "no prediction is shown" in capsys.readouterr().err and drawn[0].axes[0].get_title() == "2_0"
    assert p1_viz_attn.main([*arguments, "--occlusion"]) == 2
    assert "predicts no classes" in capsys.readouterr().err


def bright_seeker():
    """A test_vit whose [CLS] token attends to bright patches: one block, a patch's key is its mean brightness."""
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


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (31, 23), (40, 170), (3000, 2000)], ids=str)
@pytest.mark.parametrize("row, column", [(0, 0), (2, 7), (9, 9)])
def test_the_only_textured_part_of_a_photo_is_where_the_picture_lights_up(drawn, tmp_path, size, row, column):
    """The texture is drawn into the photo where the patch must come from: the evaluation resizes the shorter side to
    168 and crops the middle 160 pixels, ten patches a side."""
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
    draw_rows([(Seen(np.full_like(photo, 127), box), attention - attention.min(), "")], tmp_path / "figure.png", "nearest")
    colour = seen_at(drawn[0].axes[2], tmp_path / "figure.png")
    lit = colour((left + right) / 2, (top + bottom) / 2)
    assert lit.max() > 200 and np.ptp(lit) > 50, "the colour map's top, over grey"
    for away in ((left - 12 * scale, top + 8 * scale), (right + 12 * scale, top + 8 * scale),
                 (left + 8 * scale, top - 12 * scale), (left + 8 * scale, bottom + 12 * scale)):
        if box[0] < away[0] < box[2] and box[1] < away[1] < box[3]:
            assert np.ptp(colour(*away)) < 50, "its neighbours keep the photo's grey"
