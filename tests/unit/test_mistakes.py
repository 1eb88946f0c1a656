import numpy as np
import pytest
from PIL import Image

from compare.mistakes import (
    answers,
    as_texts,
    classes_confused_most,
    confused_pairs,
    confusion,
    hard_photos,
    load_photos,
)
from tests.helpers.run_folders import study, write_mistakes


@pytest.fixture
def settings(tmp_path):
    write_mistakes(tmp_path)
    return study(tmp_path).settings


def as_tuples(mistakes):
    return [(one.image, one.predicted, round(one.probability, 4)) for one in mistakes]


def test_confusion_is_the_mean_over_seeds(settings):
    assert confusion(settings[0]).tolist() == [[1.5, 2, 0.5], [1, 3, 0], [0, 0, 4]]


def test_the_photos_of_a_cell_are_those_of_the_most_confident_seed(settings):
    cells = answers(settings[0])
    # image 0 in both seeds, 3 in the first, 6 in the second one
    assert as_tuples(cells[0, 1]) == [(0, 1, 0.9), (6, 1, 0.9), (3, 1, 0.6)]
    assert as_tuples(cells[0, 2]) == [(6, 2, 0.6)]
    assert as_tuples(cells[0, 0]) == [(3, 0, 0.9), (9, 0, 0.9)] and (2, 0) not in cells


def test_confused_pairs_are_unordered_and_have_their_photos(settings):
    first, second = confused_pairs(settings[0])
    # of the two seeds: 0 -> 1 (image 0 twice, 3 and 6 once), 1 -> 0 (image 4 twice), 0 -> 2 (image 6 once)
    assert (first.name, first.count, first.images) == ("beagle and pug", "3", 8)
    assert as_tuples(first.mistakes) == [(0, 1, 0.9), (4, 0, 0.9), (6, 1, 0.9)]
    assert (second.name, second.count) == ("beagle and sphynx", "0.5")
    assert as_tuples(second.mistakes) == [(6, 2, 0.6)]


def test_hard_photos_are_wrong_in_every_seed_of_every_setting(settings):
    hard = hard_photos(settings)
    assert as_tuples(hard) == [
        (4, 0, round((0.6 + 0.9 + 0.5) / 3, 4)), (0, 1, round((0.6 + 0.9 + 0.25) / 3, 4)),
        (6, 1, round((0.2 + 0.9 + 0.5) / 3, 4))]
    assert as_texts(settings[0].images, hard[0]) == ("1_4.jpg", "pug", "beagle", "0.67")


def test_photos_are_loaded_with_their_captions_from_where_they_are(settings, tmp_path):
    images, hard = settings[0].images, hard_photos(settings)
    photos = load_photos(images, hard)
    captions = [text for _, text in photos]
    assert photos[0][0].shape == (30, 40, 3) and captions[0] == "1_4.jpg: pug -> beagle (0.67)"
    assert len(captions) == 3
    images.folder.rename(tmp_path / "moved")
    assert load_photos(images, hard) is None
    assert [text for _, text in load_photos(images, hard, tmp_path / "moved")] == captions
    (tmp_path / "moved" / "1_4.jpg").write_bytes(b"x")
    assert load_photos(images, hard, tmp_path / "moved") is None


def test_large_photos_become_thumbnails(settings):
    images = settings[0].images
    Image.new("RGB", (1600, 800)).save(images.folder / "1_4.jpg")
    assert load_photos(images, hard_photos(settings))[0][0].shape == (200, 400, 3)


def test_of_very_many_classes_those_with_the_most_mistakes_are_chosen():
    counts = np.diag([3] * 70)
    counts[68, 0] = counts[5, 60] = 1
    classes = classes_confused_most(counts).tolist()
    assert len(classes) == 60 and classes == sorted(classes) and {0, 5, 60, 68} <= set(classes)
    assert classes_confused_most(counts[:3, :3]).tolist() == [0, 1, 2]
    counts = np.diag([9] * 5)
    counts[0, 3], counts[3, 4], counts[1, 2] = 4, 2, 3
    assert classes_confused_most(counts, 4).tolist() == [0, 1, 2, 3], "0 and 3, then 1 and 2"
    assert classes_confused_most(counts, 3).tolist() == [0, 1, 3]
