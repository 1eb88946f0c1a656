"""Photos shown to a model, without a script."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import BadInput
from datasets import decode, transforms
from interpret.attention import attention_maps, rollout
from interpret.occlusion import occlusion
from interpret.photos import Viewer
from models import vit
from tests.helpers.checkpoints import CLASSES, write_checkpoint

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "best.pt")


@pytest.fixture
def viewer(checkpoint):
    return Viewer(CPU, checkpoint)


@pytest.fixture
def photos(shapes):
    return [shapes / "val" / name for name in ("2_1.jpg", "0_0.jpg", "3_2.jpg")]


def inputs_of(viewer, photos):
    transform = transforms.evaluation_transform(viewer.preprocessing)
    return torch.stack([transform(decode.load_image(photo)) for photo in photos])


def test_the_arrays_are_those_of_the_model(viewer, photos):
    _, maps = attention_maps(viewer.model, inputs_of(viewer, photos), range(6))
    results = list(viewer.attend(photos, batch_size=2, block=2, with_rollout=True, with_all=True))
    assert [result.path for result in results] == photos
    for i, result in enumerate(results):
        assert np.array_equal(result.pixels, np.asarray(decode.load_image(photos[i])))
        arrays = result.arrays
        blocks = torch.stack([block[i] for block in maps]).numpy()
        patches = blocks[:, :, 0, 1:].reshape(6, 2, 10, 10)
        np.testing.assert_allclose(arrays["attention_per_head"], patches[2], atol=1e-6)
        np.testing.assert_allclose(arrays["attention"], patches[2].mean(0), atol=1e-6)
        mixed = rollout([block[i:i + 1] for block in maps])[0, 0, 1:].reshape(10, 10)
        np.testing.assert_allclose(arrays["rollout"], mixed, atol=1e-6)
        packed, scale = arrays["attention_all"], arrays["attention_all_scale"]
        assert packed.shape == (6, 2, 101, 100) and packed.dtype == np.uint8 and scale.shape == (6, 2, 101)
        np.testing.assert_allclose(scale, blocks[..., 1:].max(3) / 255, rtol=1e-4)
        assert (np.abs(packed * scale[..., None] - blocks[..., 1:]) <= scale[..., None] / 2 + 1e-6).all()
        np.testing.assert_allclose(arrays["attention_cls"], blocks[:, :, 0], atol=1e-6)


def test_the_map_of_each_block_lies_somewhere_else(viewer, photos, shapes):
    """Its shares are those that the photo has when this block is the one that is shown."""
    covers = [viewer.cover(photo, shapes / "masks" / "val" / f"{photo.stem}.png") for photo in photos]
    at_once = list(viewer.attend(photos, by_block=True))
    rows = np.stack([photo.ground_blocks(*cover) for photo, cover in zip(at_once, covers)])
    assert rows.shape == (3, 6, 2, 4)
    for block in range(6):
        single = list(viewer.attend(photos, block=block))
        for photo, cover, one, of_photo in zip(at_once, covers, single, rows):
            np.testing.assert_allclose(photo.arrays["attention_by_block"][block], one.attention, atol=1e-7)
            assert np.array_equal(photo.arrays["sinks_by_block"][block], one.arrays["sinks"])
            grounds = one.ground(*cover)
            np.testing.assert_allclose(of_photo[block], [grounds[0], grounds[-1]], atol=1e-6)
    assert np.array_equal(at_once[2].arrays["share_on_object_by_block"], rows[2, :, :, 0])
    assert np.array_equal(at_once[2].arrays["peak_on_object_by_block"], rows[2, :, :, 2])


def test_one_block_is_the_default_and_rollout_is_what_is_drawn(viewer, photos):
    _, (last,) = attention_maps(viewer.model, inputs_of(viewer, photos[:1]))
    (plain,) = viewer.attend(photos[:1])
    assert sorted(plain.arrays) == ["attention", "attention_per_head", "sinks"]
    assert plain.attention is plain.arrays["attention"]
    np.testing.assert_allclose(plain.attention, last[0, :, 0, 1:].mean(0).reshape(10, 10), atol=1e-6)
    (mixed,) = viewer.attend(photos[:1], with_rollout=True)
    assert mixed.attention is mixed.arrays["rollout"]


def test_predictions_and_true_classes_have_their_names(viewer, photos, shapes, tmp_path, monkeypatch):
    (tmp_path / "3").mkdir()
    (tmp_path / "nobody").mkdir()
    copies = [shutil.copy(photos[0], tmp_path / folder / "photo.jpg") for folder in ("3", "nobody")]
    with torch.no_grad():
        probabilities = viewer.model(inputs_of(viewer, photos)).softmax(1)
    results = list(viewer.attend([*photos, *copies]))
    for result, row in zip(results, probabilities[[0, 1, 2, 0, 0]]):
        name = CLASSES[row.argmax()]
        assert result.metadata["predicted"] == name
        assert result.metadata["confidence"] == pytest.approx(row.max().item(), abs=1e-6)
        sign, label = "\N{BALLOT X}" if result.mistaken else "\N{CHECK MARK}", result.metadata["label"]
        truth = f"{sign} predicted {name} {row.max():.2f}, is {label}"
        assert result.title == f"{result.path.stem}: " + (
            truth if label else f"{name}, probability {row.max():.2f}")
        assert result.mistaken == (label not in (name, ""))
    name = CLASSES[probabilities[0].argmax()]
    (tmp_path / str(CLASSES.index(name))).mkdir()
    right = shutil.copy(photos[0], tmp_path / str(CLASSES.index(name)) / "own.jpg")
    (result,) = viewer.attend([right])
    assert not result.mistaken and result.title.startswith(f"own: \N{CHECK MARK} predicted {name} 0.")
    assert any(result.mistaken for result in results)
    labels = [result.metadata["label"] for result in results]
    assert labels == [CLASSES[2], CLASSES[0], CLASSES[3], CLASSES[3], ""]
    photo = shutil.copy(photos[0], tmp_path / "3" / "2_1.jpg")
    paths, names = [photo, photo, photos[0]], ["2_1", "0/2_1", "nobody/2_1"]
    results = list(viewer.attend(paths, names=names))
    assert [result.metadata["label"] for result in results] == [CLASSES[3], CLASSES[0], ""], "the folder wins"
    assert [result.title.partition(": ")[0] for result in results] == names
    monkeypatch.chdir(tmp_path / "3")
    assert next(viewer.attend([Path("2_1.jpg")])).metadata["label"] == CLASSES[3], "seen from inside, too"


def test_what_is_known_of_a_photo(viewer, photos):
    first = next(viewer.attend(photos)).metadata
    assert first["model"] == viewer.name and first["photo"] == str(photos[0].resolve())
    size = decode.load_image(photos[0]).size
    assert first["box"] == transforms.crop_box(size, viewer.preprocessing)


def test_what_lies_on_the_object_agrees_with_a_count_of_pixels(viewer, photos, shapes):
    (photo,) = viewer.attend(photos[:1])
    inside, outside = viewer.cover(photos[0], shapes / "masks" / "val" / "2_1.png")
    (share, area, peak, chance), = photo.ground(inside, outside)
    mask = np.asarray(Image.open(shapes / "masks" / "val" / "2_1.png")) > 0
    left, top, right, bottom = photo.metadata["box"]
    rows, columns = np.indices(mask.shape) + 0.5
    rows, columns = (rows - top) / (bottom - top) * 10, (columns - left) / (right - left) * 10
    visible = (rows >= 0) & (rows < 10) & (columns >= 0) & (columns < 10)
    spread = photo.attention[rows[visible].astype(int), columns[visible].astype(int)]
    assert area == pytest.approx(mask[visible].mean(), abs=0.01)
    assert share == pytest.approx(spread[mask[visible]].sum() / spread.sum(), abs=0.01)
    numbers = {"share_on_object": share, "share_of_area": area, "peak_on_object": peak}
    assert numbers.items() <= photo.arrays.items()
    assert np.array_equal(photo.arrays["object_cover"], inside) and 0 < chance < 1
    assert np.array_equal(photo.arrays["background_cover"], outside)
    assert photo.title.endswith(f"\non the object {share:.1%}, area {area:.1%}")


def test_occlusion_is_that_of_the_map_that_is_drawn(viewer, photos):
    (photo,) = viewer.attend(photos[:1], with_rollout=True)
    (probability, falls), = photo.occlude(viewer.model)
    image, mixed = inputs_of(viewer, photos[:1])[0], torch.from_numpy(photo.arrays["rollout"])
    assert (probability, [falls]) == occlusion(viewer.model, image, mixed[None])
    assert photo.arrays["probability"] == probability and np.array_equal(photo.arrays["occlusion"], falls)


def test_a_mask_without_object_and_background_is_refused(viewer, photos, tmp_path):
    Image.new("L", decode.load_image(photos[0]).size, 3).save(tmp_path / "2_1.png")  # all border
    with pytest.raises(BadInput, match="2_1.png marks neither object nor background"):
        viewer.cover(photos[0], tmp_path / "2_1.png")


def test_another_image_size_is_another_grid(checkpoint, photos, shapes):
    viewer = Viewer(CPU, checkpoint, image_size=(192, 256))
    (photo,) = viewer.attend(photos[:1])
    assert photo.inputs.shape == (3, 192, 256) and photo.attention.shape == (12, 16)
    assert viewer.cover(photos[0], shapes / "masks" / "val" / "2_1.png").shape == (2, 12, 16)


def test_weights_without_a_head_predict_nothing(photos, tmp_path, capsys):
    weights = vit.build("test_vit").state_dict()
    backbone = {key: value for key, value in weights.items() if not key.startswith("head.")}
    torch.save(backbone, tmp_path / "backbone.pt")
    viewer = Viewer(CPU, arch="test_vit", weights=tmp_path / "backbone.pt")
    assert "no prediction is shown" in capsys.readouterr().err and viewer.class_names == []
    (photo,) = viewer.attend(photos[:1])
    assert photo.title == "2_1" and photo.metadata["predicted"] == "" and photo.metadata["confidence"] == 0


def test_the_classes_of_imagenet_s_head_have_their_names(photos, tmp_path):
    torch.save(vit.build("test_vit").state_dict(), tmp_path / "weights.pt")
    viewer = Viewer(CPU, arch="test_vit", weights=tmp_path / "weights.pt")
    assert len(viewer.class_names) == 1000 and viewer.class_names[283] == "Persian cat"
    (photo,) = viewer.attend(photos[:1])
    assert photo.title.startswith(f"2_1: {photo.metadata['predicted']}, probability 0.")
    assert photo.metadata["predicted"] in viewer.class_names and not photo.mistaken


def test_a_model_without_a_cls_token_is_refused_by_its_name(photos, tmp_path):
    torch.save(vit.build("test_vit3").state_dict(), tmp_path / "weights.pt")
    viewer = Viewer(CPU, arch="test_vit3", weights=tmp_path / "weights.pt")
    with pytest.raises(BadInput, match=r"^test_vit3: this model has no \[CLS\] token"):
        list(viewer.attend(photos))
