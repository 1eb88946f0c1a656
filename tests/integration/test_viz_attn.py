import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import p1_eval
import p1_viz_attn
from datasets import decode, transforms
from interpret.attention import attention_maps
from models import vit
from models.checkpoint import open_checkpoint
from page import attention
from plots import style
from tests.helpers.checkpoints import CLASSES, plant_sink, write_checkpoint
from tests.helpers.checkpoints import checkpoint as checkpoint_content

KEYS = {"attention", "attention_per_head", "attention_all", "attention_all_scale", "attention_cls", "sinks",
        "share_on_object", "share_of_area", "peak_on_object", "object_cover", "background_cover",
        "occlusion", "probability", "model", "photo", "box", "predicted", "confidence", "label"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "best.pt")


@pytest.fixture
def draw(checkpoint, tmp_path):
    """draw(photos, output, *flags) is the exit code of p1_viz_attn.py."""

    def draw(photos, output, *flags):
        flags = ["--checkpoint", checkpoint, "--output-dir", tmp_path / output, "--device", "cpu", *flags]
        return p1_viz_attn.main(list(map(str, [*photos, *flags])))

    return draw


def test_pictures_arrays_and_numbers_of_several_photos(draw, checkpoint, shapes, tmp_path, capsys):
    photos = [shapes / "val" / "2_1.jpg", shapes / "val" / "0_0.jpg"]
    flags = ["--all", "--masks", shapes / "masks" / "val", "--occlusion", "--sheet", "--batch-size", 1]
    assert draw(photos, "new", *flags) == 0
    lines = capsys.readouterr().out.splitlines()
    opened = open_checkpoint(checkpoint)
    transform = transforms.evaluation_transform(opened.preprocessing)
    shares, areas, probabilities = [], [], []
    for photo in photos:
        assert Image.open(tmp_path / "new" / f"{photo.stem}.png").width > 1000
        _, (last,) = attention_maps(opened.model, transform(decode.load_image(photo))[None])
        with np.load(tmp_path / "new" / f"{photo.stem}.npz") as arrays:
            assert set(arrays) == KEYS
            heads = last[0, :, 0, 1:].reshape(2, 10, 10).numpy()
            np.testing.assert_allclose(arrays["attention_per_head"], heads, atol=1e-6)
            assert str(arrays["model"]) == str(checkpoint) and str(arrays["photo"]) == str(photo)
            assert arrays["occlusion"].shape == (3, 3)
            shares.append(arrays["share_on_object"])
            areas.append(arrays["share_of_area"])
            probabilities.append(arrays["probability"])
            assert arrays["probability"] == pytest.approx(arrays["confidence"], abs=1e-6)
    fall = r"0\.\d{3}, 0\.\d{3}, 0\.\d{3}"
    for i, photo in enumerate(photos):
        assert re.fullmatch(
            f"{photo.stem}: {shares[i]:.1%} of the attention on the object, which covers {areas[i]:.1%} "
            "of the area; peak (on or beside it|elsewhere)", lines[2 * i])
        assert re.fullmatch(
            rf"{photo.stem}: probability {probabilities[i]:.3f}; without the 10%, 25%, 50% most attended "
            rf"patches {fall}; without as many random ones {fall}", lines[2 * i + 1])
    assert lines[4].startswith(f"mean of 2: {np.mean(shares):.1%} of the attention")
    assert re.search(r"peak on or beside it in \d+\.\d% \(by chance \d+\.\d%\)$", lines[4])
    assert lines[5].startswith(f"mean of 2: probability {np.mean(probabilities):.3f}; ")
    assert lines[6] == f"{checkpoint}: 2 images drawn to {tmp_path / 'new'}"
    assert Image.open(tmp_path / "new" / "contact_sheet.png").height > 1000


def test_all_blocks_in_a_picture_and_where_each_lies(draw, shapes, tmp_path, drawn, capsys):
    photos = sorted((shapes / "val").iterdir())
    masks = ["--masks", shapes / "masks" / "val"]
    assert draw(photos, "blocks", *masks, "--block", "all", "--all") == 0
    out, shares, right = capsys.readouterr().out, [], []
    for photo in photos:
        with np.load(tmp_path / "blocks" / f"{photo.stem}.npz") as arrays:
            assert arrays["attention_by_block"].shape == arrays["sinks_by_block"].shape == (6, 10, 10)
            shares.append(arrays["share_on_object_by_block"][:, 0])
            right.append(arrays["predicted"] == arrays["label"])
            areas = arrays["share_of_area_by_block"]
    assert areas.shape == (6, 2) and 0 < sum(right) < len(right)
    shares, right = np.array(shares), np.array(right)
    groups = [np.full(len(right), True), right, ~right]
    names, *lines = [line.split() for line in out[out.index("block  "):].splitlines()[1:9]]
    assert names == 3 * ["all", "16", "right", str(sum(right)), "wrong", str(sum(~right))]
    for block, line in enumerate(lines[:6]):
        assert line[:4] == [str(block), *(f"{shares[group, block].mean():.1%}" for group in groups)]
    assert lines[6][0] == "even" and len(lines[6]) == 10

    of_photo, by_block = drawn[0], drawn[-1]
    assert [axes.get_title() for axes in of_photo.axes[1:]] == [
        f"block {block}: {share:.0%}" for block, share in enumerate(shares[0])]
    assert "mean of 2 heads; the share of it on the object" in of_photo.texts[1].get_text()
    curve = by_block.axes[0].lines[2]
    assert curve.get_label() == f"right {sum(right)}"
    np.testing.assert_allclose(curve.get_ydata(), shares[right].mean(0))
    assert Image.open(tmp_path / "blocks" / "by_block.png").width > 1000

    assert draw(photos[:1], "plain", "--block", "all") == 0
    assert not (tmp_path / "plain" / "by_block.png").exists()
    shutil.copy(photos[0], tmp_path / "by_block.jpg")
    shutil.copytree(shapes / "masks" / "val", tmp_path / "masks")
    shutil.copy(shapes / "masks" / "val" / f"{photos[0].stem}.png", tmp_path / "masks" / "by_block.png")
    capsys.readouterr()
    assert draw([tmp_path / "by_block.jpg"], "name", "--masks", tmp_path / "masks", "--block", "all") == 2
    assert "--block all takes the name of by_block.png" in capsys.readouterr().err


def test_sinks_are_named_framed_and_left_out_on_request(draw, shapes, tmp_path, drawn, capsys):
    content = checkpoint_content()
    plant_sink(content["state_dict"], (10, 10), 2, 7)
    torch.save(content, tmp_path / "sink.pt")
    photo, masks = shapes / "val" / "2_1.jpg", shapes / "masks" / "val"
    for output, *flags in (["plain"], ["cut", "--without-sinks"]):
        assert draw([photo], output, "--checkpoint", tmp_path / "sink.pt", "--masks", masks, *flags) == 0
        first, *rest = capsys.readouterr().out.splitlines()
        assert first.startswith("1 of 100 patches draw attention") and first.endswith(": row 2 column 7")
        assert [line.partition(":")[0] for line in rest[:4]] == [
            "2_1", "2_1 without sinks", "mean of 1", "mean of 1 without sinks"]
    for figure, label in zip(drawn, ("mean of 2 heads", "mean of 2 heads, without sinks")):
        assert figure.texts[0].get_text().replace("\n", " ").endswith(label)
    plain, cut = (figure.axes[1].images[0].get_array() for figure in drawn)
    assert plain[2, 7] == plain.max() and cut[2, 7] == 0
    assert np.array_equal(np.load(tmp_path / "cut" / "2_1.npz")["attention"], plain)
    for figure in drawn:
        for axes in figure.axes[1:3]:
            assert len(axes.collections) == 1, "the outline of the mask"
            frame, = [patch for patch in axes.patches if not patch.get_fill()]
            (left, right), (bottom, top) = axes.images[-1].get_extent()[:2], axes.images[-1].get_extent()[2:]
            assert frame.get_x() == pytest.approx(left + 0.7 * (right - left))
            assert frame.get_y() == pytest.approx(top + 0.2 * (bottom - top))
    assert draw([photo], "none", "--without-sinks") == 0
    assert "there are no sinks" in capsys.readouterr().out


def test_a_folder_counts_as_its_images_and_two_of_one_stem_are_refused(draw, shapes, tmp_path, capsys):
    Image.open(shapes / "val" / "0_0.jpg").save(tmp_path / "0_0.png")
    assert draw([tmp_path / "0_0.png", shapes / "val"], "out") == 2
    assert "0_0.png and" in capsys.readouterr().err and not (tmp_path / "out").exists()
    (tmp_path / "folder").mkdir()
    for i in range(2):
        Image.new("RGB", (50 + 400 * i, 60)).save(tmp_path / "folder" / f"$5_^$ {i}.png")  # no formula
    assert draw([tmp_path / "folder"], "out") == 0
    names = [f"$5_^$ {i}.{suffix}" for i in range(2) for suffix in ("npz", "png")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


def test_photos_of_class_folders_keep_them_and_are_of_their_class_as_in_evaluation(
        draw, checkpoint, shapes, tmp_path, capsys):
    """Their names say another class; a page shows each under the class that the evaluation counts it to."""
    for label in "01":
        (tmp_path / "val" / label).mkdir(parents=True)
        (tmp_path / "masks" / label).mkdir(parents=True)
        shutil.copy(shapes / "val" / f"{label}_0.jpg", tmp_path / "val" / label / "3_0.jpg")
        shutil.copy(shapes / "masks" / "val" / f"{label}_0.png", tmp_path / "masks" / label / "3_0.png")
    assert draw([tmp_path / "val"], "out", "--all", "--sheet", "--masks", tmp_path / "masks") == 0
    assert "0/3_0: " in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"0", "1", "contact_sheet.png"}
    for label in "01":
        assert Image.open(tmp_path / "out" / label / "3_0.png").width > 1000
        with np.load(tmp_path / "out" / label / "3_0.npz") as arrays:
            assert str(arrays["label"]) == CLASSES[int(label)]
            assert str(arrays["photo"]) == str(tmp_path / "val" / label / "3_0.jpg")
    flags = ["--checkpoint", checkpoint, "--json", tmp_path / "result.json", "--device", "cpu"]
    assert p1_eval.main(list(map(str, [tmp_path / "val", *flags, "--workers", 0]))) == 0
    per_class = json.loads((tmp_path / "result.json").read_text())["per_class"]
    assert [per_class[label]["labelled"] for label in "0123"] == [1, 1, 0, 0]
    section = attention.section([tmp_path / "out"], [], 10**9)
    assert [(photo["name"], photo["label"]) for photo in section.data["photos"]] == [
        ("0/3_0", CLASSES[0]), ("1/3_0", CLASSES[1])]


def test_the_flags_choose_what_is_drawn(draw, shapes, tmp_path, drawn, monkeypatch):
    monkeypatch.setattr(style, "DPI", 80)
    photos = [shapes / "val" / name for name in ("2_1.jpg", "0_0.jpg", "3_2.jpg")]

    def figures(output, *flags, photos=photos[1:2]):
        drawn.clear()
        assert draw(photos, output, *flags) == 0
        return drawn, np.load(tmp_path / output / "0_0.npz")

    (*_, sheet), arrays = figures("block", "--block", 2, "--sheet", "--scale-each", photos=photos)
    titles = [axes.get_title().partition("\n")[0] for axes in sheet.axes[:9:3]]
    assert titles == ["2_1", "0_0", "3_2"] and sheet.texts[0].get_text().replace("\n", " ").endswith(
        ", block 2 of 0 to 5, mean of 2 heads")
    assert np.allclose(sheet.axes[4].images[0].get_array(), arrays["attention"])
    assert len({sheet.axes[i].images[0].get_clim() for i in (1, 4, 7)}) == 3
    (mixed,), arrays = figures("rollout", "--rollout", "--format", "pdf")
    assert (tmp_path / "rollout" / "0_0.pdf").exists()
    assert np.allclose(mixed.axes[1].images[0].get_array(), arrays["rollout"])
    assert mixed.texts[0].get_text().replace("\n", " ").startswith("attention rollout")


def test_the_users_files_are_kept(draw, shapes, tmp_path, capsys):
    Image.open(shapes / "val" / "2_0.jpg").save(tmp_path / "2_0.png")
    (tmp_path / "masks").mkdir()
    Image.open(shapes / "masks" / "val" / "2_0.png").save(tmp_path / "masks" / "2_0.png")
    photo, mask = tmp_path / "2_0.png", tmp_path / "masks" / "2_0.png"
    before = photo.read_bytes(), mask.read_bytes()
    for output, flags in (("", []), ("masks", ["--masks", tmp_path / "masks"])):
        assert draw([photo], output, *flags) == 2 and "would overwrite 2_0.png" in capsys.readouterr().err
    assert draw([photo, photo], "out") == 2, "the same photo twice"
    assert before == (photo.read_bytes(), mask.read_bytes())


def test_what_cannot_be_drawn_is_refused_before_the_first_figure(draw, shapes, tmp_path, capsys):
    Image.new("L", Image.open(shapes / "val" / "2_0.jpg").size, 3).save(tmp_path / "2_0.png")
    assert draw([shapes / "val" / "2_0.jpg"], "out", "--masks", tmp_path) == 2
    assert "marks neither object nor background" in capsys.readouterr().err
    (tmp_path / "photos").mkdir()
    for i in range(41):
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / f"{i}.png")
    assert draw([tmp_path / "photos"], "out", "--sheet") == 2 and "41 photos" in capsys.readouterr().err
    (tmp_path / "photos" / "0.png").rename(tmp_path / "contact_sheet.png")
    assert draw([tmp_path / "contact_sheet.png"], "out", "--sheet") == 2
    assert "contact_sheet.png, the figure of a photo: rename it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_occlusion_of_a_model_that_predicts_no_classes_is_refused(shapes, tmp_path, capsys):
    weights = vit.build("test_vit").state_dict()
    backbone = {key: value for key, value in weights.items() if not key.startswith("head.")}
    torch.save(backbone, tmp_path / "backbone.pt")
    flags = ["--weights", tmp_path / "backbone.pt", "--output-dir", tmp_path / "out", "--device", "cpu"]
    arguments = list(map(str, [shapes / "val" / "2_0.jpg", "--arch", "test_vit", *flags]))
    assert p1_viz_attn.main([*arguments, "--occlusion"]) == 2
    assert "test_vit predicts no classes" in capsys.readouterr().err
    assert p1_viz_attn.main(arguments) == 0 and (tmp_path / "out" / "2_0.png").exists()
