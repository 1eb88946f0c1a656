import json
import unicodedata

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from common.errors import BadInput
from datasets.captions import CaptionDataset, random_holdout, read_captions
from datasets.images import image_names
from models.decoding import collate, token_losses


def coco(folder, images, annotations, name="train2017"):
    """A folder in COCO's layout."""
    (folder / "annotations").mkdir(parents=True)
    (folder / name).mkdir()
    for _, file in images:
        Image.new("RGB", (40, 30), "red").save(folder / name / file)
    (folder / "annotations" / f"captions_{name}.json").write_text(json.dumps({
        "info": {"year": 2017}, "images": [{"id": i, "file_name": file, "width": 40} for i, file in images],
        "annotations": [{"id": k, "image_id": i, "caption": text} for k,
                        (i, text) in enumerate(annotations)]}))
    return folder


def test_cocos_own_layout_is_read(tmp_path):
    folder = coco(tmp_path / "coco", [(7, "b.jpg"), (9, "a.jpg"), (11, "c.jpg")],
                  [(9, "A dog.\n"), (7, "Two  cats"), (9, "a brown dog"), (7, " ")])
    found = read_captions(folder, "train")
    assert found.names == ["a.jpg", "b.jpg"] and found.root == folder / "train2017"
    assert found.captions == [["A dog.", "a brown dog"], ["Two cats"]]
    assert found.pairs() == (["a.jpg", "a.jpg", "b.jpg"], ["A dog.", "a brown dog", "Two cats"])
    other = coco(tmp_path / "other", [(7, "b.jpg"), (9, "a.jpg")], [(9, "A dog."), (7, "Two cats"),
                                                                    (9, "a brown cat")])
    assert read_captions(other, "train").fingerprint() != found.fingerprint() == found.keep([0,
                                                                                             1]).fingerprint()


def test_photos_are_found_under_either_form_of_their_names_and_a_byte_order_mark_is_skipped(tmp_path):
    folder = coco(tmp_path / "coco", [(1, unicodedata.normalize("NFD", "Köter.jpg"))], [(1, "a dog")])
    file = folder / "annotations" / "captions_train2017.json"
    typed = json.loads(file.read_text())
    typed["images"][0]["file_name"] = "Köter.jpg"
    file.write_text(json.dumps(typed), encoding="utf-8-sig")
    found = read_captions(folder, "train")
    assert found.names == [unicodedata.normalize("NFD", "Köter.jpg")] and found.captions == [["a dog"]]


@pytest.mark.parametrize("text, expected", [
    ('{"images": [{"id": 1, "file_name": "x.jpg"}, {"id": 1, "file_name": "y.jpg"}], "annotations": []}',
     "two photos have the id 1"),
    ("{", "not a captions file in COCO's format"), ("[]", "not a captions file"),
    ('{"images": [], "annotations": []}', "no captions"),
    ('{"images": [{"id": 1, "file_name": "x.jpg"}]}', "KeyError"),
    ('{"images": [{"id": 1, "file_name": "x.jpg"}], "annotations": [{"image_id": 2, "caption": "a"}]}',
     "KeyError"),
    ('{"images": [{"id": 1, "file_name": "x.jpg"}], "annotations": [{"image_id": 1, "caption": null}]}',
     "AttributeError"),
    ('{"images": [{"id": 1, "file_name": 5}], "annotations": [{"image_id": 1, "caption": "a"}]}',
     "a file_name is no text"),
])
def test_a_bad_captions_file_is_an_error_that_says_so(tmp_path, text, expected):
    folder = coco(tmp_path / "coco", [], [])
    (folder / "annotations" / "captions_train2017.json").write_text(text)
    with pytest.raises(BadInput, match=expected):
        read_captions(folder, "train")


def test_photos_that_are_missing_or_broken_are_left_out_on_request(tmp_path, capsys):
    images = [(i, f"{name}.jpg") for i, name in enumerate("abc")]
    folder = coco(tmp_path / "coco", images, [(2, "Three."), (0, "One."), (1, "Two."), (2, "3.")])
    (folder / "train2017" / "a.jpg").unlink()
    (folder / "train2017" / "b.jpg").write_text("x")
    found = read_captions(folder, "train")
    assert sorted(found.names) == ["a.jpg", "b.jpg", "c.jpg"]
    assert image_names(found.root, skip_bad=True, names=found.names) == ["c.jpg"]
    assert capsys.readouterr().err == "note: left out 2 bad files: a.jpg, b.jpg\n"
    with pytest.raises(BadInput, match="1 file of 3 .*train2017 cannot be used: .*--skip-bad") as caught:
        image_names(found.root, skip_bad=False, names=found.names)  # what can be said without decoding
    assert caught.value.details == ("a.jpg: No such file or directory",)


def test_missing_and_ambiguous_parts_are_named(tmp_path):
    folder = coco(tmp_path / "coco", [(1, "a.jpg")], [(1, "a")])
    for missing, expected in ((tmp_path / "nowhere", "does not exist"),
                              (folder / "train2017" / "a.jpg", "is not a folder")):
        with pytest.raises(BadInput, match=expected):
            read_captions(missing, "train")
    with pytest.raises(BadInput, match="no file captions_val"):
        read_captions(folder, "val")
    (folder / "annotations" / "captions_train2014.json").write_text("{}")
    with pytest.raises(BadInput, match="2 files"):
        read_captions(folder, "train")
    (folder / "annotations" / "captions_train2017.json").unlink()
    with pytest.raises(BadInput, match="train2014 does not exist"):
        read_captions(folder, "train")


def test_photos_are_held_out_by_the_seed():
    fit, held = random_holdout(50, 0.1, 0)
    assert len(held) == 5 and sorted(fit + held) == list(range(50)) and random_holdout(50, 0.1, 1)[1] != held
    assert random_holdout(50, 0, 0) == (list(range(50)), []) and len(random_holdout(5, 0.01, 0)[1]) == 1
    with pytest.raises(BadInput, match="--holdout 0"):
        random_holdout(1, 0.1, 0)


def test_items_are_the_transformed_photo_and_the_encoded_caption(tmp_path):
    folder = read_captions(coco(tmp_path / "coco", [(1, "a.jpg")], [(1, "a dog"), (1, "dog")]), "train")
    items = CaptionDataset(folder.root, *folder.pairs(), lambda photo: photo.size, str.split)
    assert len(items) == 2 and items[0] == items[3, 0] == ((40, 30), ["a", "dog"])
    assert items[4, 1] == ((40, 30), ["dog"])



def test_captions_of_a_batch_are_padded_at_the_end():
    photos, ids = collate([("one", [2, 4, 5, 3]), ("two", [2, 5, 3]), ("none", [0, 0])])
    assert photos == ["one", "two", "none"]
    assert ids.tolist() == [[2, 4, 5, 3], [2, 5, 3, 0], [0, 0, 0, 0]]


def test_the_loss_is_the_mean_over_the_tokens_of_each_caption():
    torch.manual_seed(0)
    logits, ids = torch.randn(3, 4, 7), torch.tensor([[2, 5, 6, 3, 0], [2, 4, 3, 0, 0], [0, 0, 0, 0, 0]])
    logits[0, 0, 5] = 9
    loss, accuracy = token_losses(logits, ids)
    one = F.cross_entropy(logits[0, :3], ids[0, 1:4])
    two = F.cross_entropy(logits[1, :2], ids[1, 1:3])
    assert torch.allclose(loss, one + two)
    right = [(logits[0, t].argmax() == ids[0, t + 1]).item() for t in range(3)]
    also = [(logits[1, t].argmax() == ids[1, t + 1]).item() for t in range(2)]
    assert accuracy.item() == pytest.approx(sum(right) / 3 + sum(also) / 2) and right[0]
