import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from common.errors import BadImage, BadInput
from datasets import decode, images, transforms
from models.vit import Normalised

PREPROCESSING = {"input_size": [3, 64, 64], "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3,
                 "crop_pct": 0.9, "crop_mode": "center"}


def save(path, size=(20, 16), colour=(200, 100, 50), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)


# Folders and labels


@pytest.mark.parametrize("name, label", [
    ("26_5064.jpg", "26"), ("great_pyrenees_12.jpg", "great_pyrenees"), ("a.b_3.jpg", "a.b"), ("Ragdoll/x.jpg", "Ragdoll"),
    ("Ragdoll/7_1.jpg", "Ragdoll"), ("photo.jpg", None), ("_12.jpg", None), ("12_.jpg", None), ("7_1", "7"),
])
def test_label_of(name, label):
    assert images.label_of(name) == label


def test_labels_sort_by_value_if_all_are_numbers():
    assert images.in_label_order(["10", "9", "100", "9"]) == ["9", "10", "100"]
    assert images.in_label_order(["10", "9", "b"]) == ["10", "9", "b"]
    with pytest.raises(BadInput, match="01 and 1|1 and 01"):
        images.in_label_order(["1", "2", "01"])


@pytest.mark.parametrize("layout", ["{label}_{i}.png", "{label}/{i}.png"])
def test_both_layouts_read_alike(tmp_path, layout):
    for label in ("3", "12"):
        for i in range(2):
            save(tmp_path / "train" / layout.format(label=label, i=i))
    (tmp_path / "train" / ".DS_Store").write_bytes(b"")
    (tmp_path / "train" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "classes.txt").write_text("three\ntwelve\n")
    folder = images.read_training_folder(tmp_path / "train", tmp_path / "classes.txt")
    assert folder.labels == ["3", "12"] and folder.class_names == ["three", "twelve"]
    assert folder.names == sorted(layout.format(label=label, i=i) for label in ("3", "12") for i in range(2))
    assert [folder.labels[t] for t in folder.targets] == [images.label_of(name) for name in folder.names]


def test_class_names_for_labels_with_gaps(tmp_path):
    file = tmp_path / "classes.txt"
    assert images.class_names(["cat", "dog"], file) == ["cat", "dog"]
    file.write_text("zero\none\ntwo\nthree\n")
    assert images.class_names(["0", "2", "3"], file) == ["zero", "two", "three"]
    assert images.class_names(["5", "6", "8", "9"], file) == ["zero", "one", "two", "three"]
    with pytest.raises(BadInput, match="4 names for 3 classes"):
        images.class_names(["5", "6", "8"], file)


def test_all_bad_files_are_listed_before_the_work(tmp_path, capsys):
    for name in ("0_1.png", "1_1.png", "nolabel.png"):
        save(tmp_path / name)
    (tmp_path / "0_2.png").write_bytes(b"")
    with pytest.raises(BadInput, match="2 files of 4") as caught:
        images.read_training_folder(tmp_path, tmp_path / "classes.txt")
    assert [line.split(":")[0] for line in caught.value.details] == ["0_2.png", "nolabel.png"]
    folder = images.read_training_folder(tmp_path, tmp_path / "classes.txt", skip_bad=True)
    assert folder.names == ["0_1.png", "1_1.png"]
    assert "left out 2 bad files: 0_2.png, nolabel.png" in capsys.readouterr().err


def test_unusable_folders(tmp_path):
    with pytest.raises(BadInput, match="does not exist"):
        images.list_files(tmp_path / "missing")
    with pytest.raises(BadInput, match="holds no images"):
        images.list_files(tmp_path)
    save(tmp_path / "mixed" / "0_1.png")
    save(tmp_path / "mixed" / "1" / "a.png")
    with pytest.raises(BadInput, match="mixes two layouts"):
        images.read_training_folder(tmp_path / "mixed", tmp_path / "classes.txt")
    save(tmp_path / "deep" / "a" / "b" / "c.png")
    with pytest.raises(BadInput, match="nested too deep"):
        images.list_files(tmp_path / "deep")
    save(tmp_path / "single" / "0_1.png")
    with pytest.raises(BadInput, match="one class, 0: training needs two"):
        images.read_training_folder(tmp_path / "single", tmp_path / "classes.txt")


@pytest.mark.parametrize("sizes", [[10, 10, 10], [3, 40, 17, 5], [1, 1, 30]])
@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_the_split_is_stratified_and_seeded(sizes, fraction):
    targets = [target for target, size in enumerate(sizes) for _ in range(size)]
    fit, held_out = images.stratified_holdout(targets, fraction, seed=3)
    assert sorted(fit + held_out) == list(range(len(targets)))
    for target, size in enumerate(sizes):
        count = sum(targets[i] == target for i in held_out)
        assert abs(count - size * fraction) < 1 and count < size
    assert (fit, held_out) == images.stratified_holdout(targets, fraction, seed=3)
    assert held_out != images.stratified_holdout(targets, fraction, seed=4)[1]


def test_the_split_holds_out_at_least_one_image_and_nothing_for_zero():
    assert len(images.stratified_holdout([0, 0, 1, 1], 0.1, seed=0)[1]) == 1
    assert images.stratified_holdout([0, 1], 0, seed=0) == ([0, 1], [])
    with pytest.raises(BadInput, match="--holdout"):
        images.stratified_holdout([0, 1], 0.5, seed=0)


# From a file to a tensor


def pixel(path):
    image = decode.load_image(path)
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


def test_every_kind_of_image_becomes_rgb(tmp_path):
    def saved(image, name, **options):
        image.save(tmp_path / name, **options)
        return tmp_path / name

    assert pixel(saved(Image.new("L", (4, 4), 90), "grey.png")) == (90, 90, 90)
    assert pixel(saved(Image.new("1", (4, 4), 1), "bit.png")) == (255, 255, 255)
    assert pixel(saved(Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "clear.png")) == (255, 255, 255)
    assert pixel(saved(Image.new("RGBA", (4, 4), (255, 0, 0, 51)), "veil.png")) == (255, 204, 204)
    assert pixel(saved(Image.new("LA", (4, 4), (0, 51)), "grey_veil.png")) == (204, 204, 204)
    deep = Image.fromarray(np.full((4, 4), 0x8001, np.uint16))
    assert pixel(saved(deep, "deep.png")) == pixel(saved(deep, "deep.tiff")) == (128, 128, 128)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert pixel(saved(palette, "palette.png")) == (10, 20, 30)
    assert pixel(saved(palette, "palette_clear.png", transparency=1)) == (255, 255, 255)
    assert pixel(saved(palette, "palette_clear.gif", transparency=1)) == (255, 255, 255)
    red, green, blue = pixel(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "cmyk.jpg", quality=100))
    assert red > 230 and green < 40 and blue < 60
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert pixel(tmp_path / "moving.gif") == (255, 0, 0)
    save(tmp_path / "really_a_png.jpg", format="PNG", colour=(1, 2, 3))
    assert pixel(tmp_path / "really_a_png.jpg") == (1, 2, 3)


@pytest.mark.parametrize("orientation, corner", [(1, "top left"), (3, "bottom right"), (6, "top right"), (8, "bottom left"),
                                                 (2, "top right"), (5, "top left")])
def test_exif_orientation_is_honoured(tmp_path, orientation, corner):
    stored = np.zeros((16, 24, 3), np.uint8)
    stored[:8, :8] = 255  # a white square in the stored top left corner
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "turned.png", exif=exif)
    image = np.asarray(decode.load_image(tmp_path / "turned.png"))
    assert image.shape[:2] == ((24, 16) if orientation >= 5 else (16, 24))
    where = {"top left": image[2, 2], "top right": image[2, -3], "bottom left": image[-3, 2], "bottom right": image[-3, -3]}
    assert [name for name, value in where.items() if value[0] == 255] == [corner]


def test_broken_metadata_does_not_spoil_a_photo(tmp_path):
    save(tmp_path / "photo.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff", colour="white")
    assert pixel(tmp_path / "photo.jpg") == (255, 255, 255)


def test_files_that_cannot_be_decoded_whole(tmp_path):
    save(tmp_path / "whole.jpg", size=(200, 200))
    content = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.jpg").write_text("not an image")
    Image.new("F", (4, 4)).save(tmp_path / "float.tiff")
    for name, reason in (("cut.jpg", "truncated"), ("text.jpg", "not an image"), ("float.tiff", "floating-point"),
                         ("missing.jpg", "No such file")):
        with pytest.raises(BadImage, match=reason):
            decode.load_image(tmp_path / name)
    bad = decode.undecodable(tmp_path, ["whole.jpg", "cut.jpg", "text.jpg"])
    assert list(bad) == ["cut.jpg", "text.jpg"] and bad["text.jpg"] == "not an image"


@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_bad_image_makes_a_list_of_all(tmp_path, workers):
    for i in range(6):
        save(tmp_path / f"0_{i}.png")
    (tmp_path / "0_2.png").write_text("x")
    (tmp_path / "0_5.png").write_text("x")
    names = [f"0_{i}.png" for i in range(6)]
    dataset = images.ImageDataset(tmp_path, names, [0] * 6, transforms.evaluation_transform(PREPROCESSING))
    with pytest.raises(BadInput, match="2 files of 6") as caught, decode.explaining_bad_images(tmp_path, names):
        list(DataLoader(dataset, batch_size=2, num_workers=workers))
    assert caught.value.details == ("0_2.png: not an image", "0_5.png: not an image")


@pytest.mark.parametrize("mode, crop_pct", [("center", 0.9), ("center", 1.0), ("squash", 0.9), ("border", 0.9), ("border", 1.0)])
@pytest.mark.parametrize("input_size", [(64, 64), (48, 80)])
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (333, 334), (70, 900), (40, 31), (3000, 2000)])
def test_the_crop_box_is_what_the_transform_keeps(size, input_size, mode, crop_pct):
    # The transform runs on pictures whose value is the pixel's position. It interpolates between pixels, so away from
    # edges the value at an output pixel says where in the photo that pixel lies.
    preprocessing = {**PREPROCESSING, "input_size": [3, *input_size], "crop_mode": mode, "crop_pct": crop_pct,
                     "interpolation": "bilinear"}
    left, top, right, bottom = transforms.crop_box(size, preprocessing)
    resize, crop = transforms.evaluation_transform(preprocessing).transforms[:2]
    crop.fill = 0  # where it pads, the colour is for three channels, and these pictures have one
    columns, rows = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
    for values, low, high, side, axis in ((columns, left, right, size[0], 1), (rows, top, bottom, size[1], 0)):
        seen = np.asarray(crop(resize(Image.fromarray(values.astype(np.float32)))))
        seen = seen[seen.shape[0] // 2] if axis == 1 else seen[:, seen.shape[1] // 2]
        expected = low + (np.arange(len(seen)) + 0.5) * (high - low) / len(seen)
        scale = (high - low) / len(seen)
        inside = (expected > scale) & (expected < side - scale)
        assert inside.any()
        assert np.abs(seen - expected)[inside].max() < 0.1 * scale


def test_the_evaluation_transform_is_the_models_own():
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 130, 3), dtype=np.uint8))
    expected = photo.resize((92, 71), Image.Resampling.BICUBIC).crop((14, 4, 78, 68))  # 71 = floor(64 / 0.9)
    expected = torch.from_numpy(np.asarray(expected).copy()).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(transforms.evaluation_transform(PREPROCESSING)(photo), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mean, std", [((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
def test_pixels_normalised_in_a_batch_are_the_same_bits(mean, std):
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(rng.integers(0, 256, (90, 100 + i, 3), dtype=np.uint8)) for i in range(3)]
    preprocessing = {**PREPROCESSING, "mean": list(mean), "std": list(std)}
    pixels = torch.stack([transforms.evaluation_pixels(preprocessing)(photo) for photo in photos])
    assert pixels.dtype == torch.uint8
    expected = torch.stack([transforms.evaluation_transform(preprocessing)(photo) for photo in photos])
    assert torch.equal(Normalised(torch.nn.Identity(), preprocessing)(pixels), expected)


def test_augmentation_depends_on_seed_epoch_and_index_alone(shapes):
    names = images.list_files(shapes / "train")
    dataset = images.ImageDataset(shapes / "train", names, [0] * len(names), transforms.training_transform(PREPROCESSING), seed=5)
    keys = [(epoch, index) for epoch in (0, 1) for index in (0, 1, 2, 3)]
    torch.manual_seed(1)
    one = [dataset[key][0] for key in keys]
    torch.manual_seed(2)
    random.seed(2)
    other = [dataset[key][0] for key in reversed(keys)][::-1]
    loaded = list(DataLoader(dataset, batch_sampler=[keys], num_workers=2))[0][0]
    assert torch.equal(torch.stack(one), torch.stack(other)) and torch.equal(torch.stack(one), loaded)
    assert not torch.equal(one[0], one[4]), "another epoch is another crop"
    dataset.seed = 6
    assert not torch.equal(one[0], dataset[keys[0]][0]), "another seed is another crop"


def test_augmentation_leaves_the_global_streams_alone():
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    expected = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    with images.random_streams(1, 2, 3):
        torch.rand(5), random.random(), np.random.rand(2)
    assert (torch.rand(1), random.random(), np.random.rand()) == expected


@pytest.mark.real_data
def test_every_real_photo_decodes(real_data):
    for part, count in (("train", 331), ("val", 111), ("named", 3)):
        names = images.list_files(real_data / "pets" / part)
        assert len(names) == count
        assert decode.undecodable(real_data / "pets" / part, names) == {}
