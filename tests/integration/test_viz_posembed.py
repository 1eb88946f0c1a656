import numpy as np
import pytest
import torch

import p1_viz_posembed
from models import vit
from tests.helpers.checkpoints import write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("output") / "best.pt")


def draw(*arguments):
    return p1_viz_posembed.main([*map(str, arguments), "--device", "cpu"])


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_the_picture_and_its_array_are_written(checkpoint, tmp_path, capsys, suffix):
    output = tmp_path / "new" / f"figure.{suffix}"
    assert draw("--checkpoint", checkpoint, "--output", output) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[:2] == ["same row", "same column"] and "best.pt" in lines[1]
    assert "mean of 100 random embeddings, 10x10 of 64" in lines[2] and len(lines) == 5
    with np.load(output.with_suffix(".npz")) as arrays:
        assert sorted(arrays) == ["adjacent_by_chance", "similarity", "titles"]
        similarity, by_chance = arrays["similarity"], arrays["adjacent_by_chance"]
    assert f"{by_chance[0]:.1%}  mean of 100" in lines[2], "the page has the number that is printed"
    embedding = torch.load(checkpoint, weights_only=True)["state_dict"]["pos_embed"][0, 1:]
    expected = torch.cosine_similarity(embedding[:, None], embedding[None], dim=-1).reshape(10, 10, 10, 10)
    np.testing.assert_allclose(similarity, expected, atol=1e-5)
    assert similarity.dtype == np.float32 and output.stat().st_size > 5000


def test_names_and_checkpoints_stand_side_by_side(checkpoint, tmp_path, drawn, capsys):
    torch.save(vit.build("test_vit4", 3).state_dict(), tmp_path / "weights.pt")
    assert draw("--checkpoint", checkpoint, "--checkpoint", checkpoint, "--arch", "test_vit4",
                "--weights", tmp_path / "weights.pt", "--output", tmp_path / "f.png") == 0
    titles = [axes.get_title() for axes in drawn[0].subfigs[0].axes[:3]]
    assert titles == ["test_vit4\nweights.pt", *[f"test_vit\n{checkpoint.parent.name}/best.pt"] * 2]
    labels = [text.get_text() for text in drawn[0].subfigs[1].legends[0].get_texts()]
    assert [label.partition("\n")[0] for label in labels[3:]] == [
        f"100 random embeddings, 10x10 of {width}" for width in (96, 64)]
    with np.load(tmp_path / "f.npz") as arrays:
        assert sorted(arrays) == ["adjacent_by_chance", "similarity", "similarity_1", "similarity_2",
                                  "titles"]
        assert arrays["titles"].tolist() == [title.replace("\n", " ") for title in titles]
    assert len(capsys.readouterr().out.splitlines()) == 1 + 3 + 2 * 2 + 2 + 1


def test_how_little_two_models_differ_is_printed_and_drawn(checkpoint, tmp_path, drawn, capsys):
    saved = torch.load(checkpoint, weights_only=True)
    saved["state_dict"]["pos_embed"][0, 5] += 0.001 * torch.randn(64)
    torch.save(saved, tmp_path / "moved.pt")
    models = checkpoint, tmp_path / "moved.pt", checkpoint
    assert draw("--checkpoint", *models, "--output", tmp_path / "f.png") == 0
    with np.load(tmp_path / "f.npz") as arrays:
        apart = np.abs(arrays["similarity_1"].astype(float) - arrays["similarity"])
    words = "similarities differ from the first model's by at most"
    moved, same = f"{words} {apart.max():.2g}, mean {apart.mean():.2g}", f"{words} 0, mean 0"
    assert 0 < apart.mean() < apart.max() < 0.1
    printed = capsys.readouterr().out.splitlines()
    assert printed[-3].endswith(f"moved.pt: {moved}") and printed[-2].endswith(f"best.pt: {same}")
    below = [axes.get_xlabel().replace("\n", " ") for axes in drawn[0].subfigs[0].axes[:3]]
    assert below == ["column of the patch", *(f"column of the patch {line}" for line in (moved, same))]
    assert p1_viz_posembed.difference(np.ones((2, 2, 2, 2)), np.ones((3, 2, 3, 2))).startswith("another grid")


def test_a_resampled_embedding_stands_beside_random_ones_resampled_alike(checkpoint, tmp_path, capsys):
    assert draw("--checkpoint", checkpoint, "--image-size", "80x96", "--output", tmp_path / "f.png") == 0
    assert "100 random embeddings, 10x10 of 64, resampled to 5x6" in capsys.readouterr().out
    with np.load(tmp_path / "f.npz") as arrays:
        assert arrays["similarity"].shape == (5, 6, 5, 6)
