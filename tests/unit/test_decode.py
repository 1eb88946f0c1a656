import gc
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from common.errors import BadImage, BadInput
from datasets import decode, images, transforms
from tests.helpers.photos import PREPROCESSING, save
from tests.helpers.strangers import grown


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


@pytest.mark.parametrize("orientation, corner", [(1, "top left"), (3, "bottom right"), (6, "top right"),
                                                 (8, "bottom left"),
                                                 (2, "top right"), (5, "top left")])
def test_exif_orientation_is_honoured(tmp_path, orientation, corner):
    stored = np.zeros((16, 24, 3), np.uint8)
    stored[:8, :8] = 255  # a white square in the stored top left corner
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "turned.png", exif=exif)
    image = np.asarray(decode.load_image(tmp_path / "turned.png"))
    assert image.shape[:2] == ((24, 16) if orientation >= 5 else (16, 24))
    where = {"top left": image[2, 2], "top right": image[2, -3], "bottom left": image[-3, 2],
             "bottom right": image[-3, -3]}
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
    for name, reason in (("cut.jpg", "truncated"), ("text.jpg", "not an image"),
                         ("float.tiff", "floating-point"),
                         ("missing.jpg", "No such file")):
        with pytest.raises(BadImage, match=reason):
            decode.load_image(tmp_path / name)
    bad = decode.undecodable(tmp_path, ["whole.jpg", "cut.jpg", "text.jpg"])
    assert list(bad) == ["cut.jpg", "text.jpg"] and bad["text.jpg"] == "not an image"


def test_a_gigapixel_image_is_refused_before_it_is_decoded(tmp_path):
    Image.new("L", (10, 10)).save(tmp_path / "bomb.png")
    content = bytearray((tmp_path / "bomb.png").read_bytes())
    content[16:24] = struct.pack(">II", 60000, 60000)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    (tmp_path / "bomb.png").write_bytes(content)
    Image.new("1", (60, 60000)).save(tmp_path / "line.png")

    def read():
        with pytest.raises(BadImage, match="bomb.png: .*3600000000 pixels"):
            decode.load_image(tmp_path / "bomb.png")
        with pytest.raises(BadImage,
                           match="line.png: 60 x 60000 pixels: one side is over 100 times the other"):
            decode.load_image(tmp_path / "line.png")

    assert grown(read) < 50


@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_bad_image_makes_a_list_of_all(tmp_path, workers, monkeypatch):
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    for i in range(6):
        save(tmp_path / f"0_{i}.png")
    (tmp_path / "0_2.png").write_text("x")
    (tmp_path / "0_5.png").write_text("x")
    names = [f"0_{i}.png" for i in range(6)]
    dataset = images.ImageDataset(tmp_path, names, [0] * 6, transforms.evaluation_transform(PREPROCESSING))
    with pytest.raises(BadInput, match="2 files of 6") as caught, \
            decode.explaining_bad_images(tmp_path, names):
        list(DataLoader(dataset, batch_size=2, num_workers=workers))
    assert caught.value.details == ("0_2.png: not an image", "0_5.png: not an image")
    del caught
    gc.collect()  # the loader waits for its processes now, and not in the midst of another test
