import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import p1_viz_attn
import p1_viz_posembed
from datasets import images
from models import vit
from models.attention import attention_maps
from plots.attention import draw_attention
from plots.posembed import draw_similarities, mosaic


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved during a test."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: (figures.append(self), save(self, *args, **kwargs)))
    return figures


def test_the_mosaic_puts_each_map_in_its_place():
    similarity = np.random.default_rng(0).uniform(-1, 1, (3, 4, 3, 4)).astype(np.float32)
    image = mosaic(similarity)
    assert image.shape == (3 * 4 - 1, 4 * 5 - 1)
    for i in range(3):
        for j in range(4):
            assert np.array_equal(image[i * 4:i * 4 + 3, j * 5:j * 5 + 4], similarity[i, j])
    assert np.isnan(image).sum() == image.size - similarity.size


def test_similarities_share_one_scale_and_are_labelled(drawn, tmp_path):
    similarities = [np.full((5, 6, 5, 6), value, np.float32) for value in (0.1, 0.9)]
    draw_similarities(similarities, ["one", "two"], tmp_path / "figure.png")
    *panels, bar = drawn[0].axes
    assert [axes.get_title() for axes in panels] == ["one", "two"]
    assert all(axes.images[0].get_clim() == (-1, 1) for axes in panels)
    for axes, value in zip(panels, (0.1, 0.9)):
        assert np.nanmax(axes.images[0].get_array()) == pytest.approx(value)
        assert [tick.get_text() for tick in axes.get_xticklabels()] == list("012345")
        assert axes.get_xticks()[2] == 2 * 7 + 2.5, "the number stands under the middle of its column of maps"
    assert bar.get_ylim() == (-1, 1) and "cosine similarity" in bar.get_ylabel()


def test_the_map_lies_on_the_box_and_the_rest_is_dimmed(drawn, tmp_path):
    photo = np.full((60, 100, 3), 200, np.uint8)
    attention = np.zeros((4, 4), np.float32)
    attention[1, 2] = 0.5
    draw_attention(photo, attention, (20, 0, 80, 60), "a heading", tmp_path / "figure.png")
    figure = drawn[0]
    photo_axes, map_axes, over_axes, bar = figure.axes
    assert map_axes.images[0].get_extent() == over_axes.images[1].get_extent() == [20, 80, 60, 0]
    assert map_axes.images[0].get_clim() == over_axes.images[1].get_clim() == (0, 0.5)
    assert np.array_equal(map_axes.images[0].get_array(), attention)
    for axes in (photo_axes, map_axes, over_axes):
        assert axes.get_xlim() == (0, 100) and axes.get_ylim() == (60, 0)
    assert figure.get_suptitle() == "a heading" and "attention" in bar.get_ylabel()

    # what a reader sees: the pixels of the saved picture
    picture = np.asarray(Image.open(tmp_path / "figure.png").convert("RGB")).astype(int)

    def colour(x, y):
        column, row = over_axes.transData.transform((x, y)) * 180 / figure.dpi
        return picture[picture.shape[0] - 1 - int(row), int(column)]

    assert np.allclose(colour(10, 30), 200 * 0.35, atol=2) and np.allclose(colour(90, 30), 200 * 0.35, atol=2)
    assert np.allclose(colour(25, 50), 200, atol=2), "no attention: the photo as it is"
    assert np.abs(colour(57.5, 22.5) - 200).max() > 40, "row 1, column 2 of 4 on 20..80: its centre is (57.5, 22.5)"


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_posembed_writes_the_picture_and_its_array(run, tmp_path, suffix):
    output = tmp_path / "new" / f"figure.{suffix}"
    arguments = ["--checkpoint", str(run / "best.pt"), "--checkpoint", str(run / "last.pt"), "--output", str(output)]
    assert p1_viz_posembed.main([*arguments, "--device", "cpu"]) == 0
    with np.load(output.with_suffix(".npz")) as arrays:
        assert sorted(arrays) == ["similarity", "similarity_1"]
        similarity = arrays["similarity"]
    embedding = torch.load(run / "best.pt", weights_only=True)["state_dict"]["pos_embed"][0, 1:]
    expected = torch.cosine_similarity(embedding[:, None], embedding[None], dim=-1).reshape(10, 10, 10, 10)
    np.testing.assert_allclose(similarity, expected, atol=1e-5)
    assert similarity.dtype == np.float32 and output.stat().st_size > 5000


def test_attn_writes_the_picture_and_its_arrays(run, shapes, tmp_path):
    photos = [shapes / "val" / "0_0.jpg", shapes / "val" / "2_1.jpg"]
    arguments = [*map(str, photos), "--checkpoint", str(run / "best.pt"), "--output-dir", str(tmp_path / "new")]
    assert p1_viz_attn.main([*arguments, "--all", "--batch-size", "1", "--device", "cpu"]) == 0
    checkpoint = vit.open_checkpoint(run / "best.pt")
    transform = images.evaluation_transform(checkpoint.preprocessing)
    inputs = torch.stack([transform(images.load_image(photo)) for photo in photos])
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
