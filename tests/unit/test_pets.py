"""Oxford-IIIT Pet's archives become the layout of the course: whole, or not at all."""

import errno
import gzip
import shutil
import tarfile

import pytest

from common.errors import BadInput
from datasets import pets
from tests.helpers.archives import ANNOTATIONS, ARRANGED, IMAGES, archive, contents


@pytest.fixture
def arrange(tmp_path):
    """Arrange archives of {name: content}, or of bytes as they are, in a folder `here/p1_data`."""
    (tmp_path / "here").mkdir()

    def arranged(images=IMAGES, annotations=ANNOTATIONS):
        for name, members in (("images", images), ("annotations", annotations)):
            content = members if isinstance(members, bytes) else archive(members)
            (tmp_path / f"{name}.tar.gz").write_bytes(content)
        return pets.arrange(tmp_path / "images.tar.gz", tmp_path / "annotations.tar.gz", arranged.folder)

    arranged.folder = tmp_path / "here" / "p1_data"
    return arranged


def refused(arrange, images=IMAGES, annotations=ANNOTATIONS):
    """The one line that says why; nothing may be left."""
    with pytest.raises(BadInput) as error:
        arrange(images, annotations)
    assert not list(arrange.folder.parent.iterdir()), "nothing is left behind"
    assert {path.name for path in arrange.folder.parent.parent.iterdir()} == {
        "here", "images.tar.gz", "annotations.tar.gz"}, "nothing is written elsewhere"
    return str(error.value)


def test_photos_masks_and_class_names_are_where_the_course_has_them(arrange):
    assert arrange() == [("basset_hound_1", 1, "train"), ("Abyssinian_100", 0, "train"),
                         ("Abyssinian_2", 0, "val"), ("Bengal_3", 2, "val")]
    assert contents(arrange.folder) == ARRANGED
    assert list(arrange.folder.parent.iterdir()) == [arrange.folder]


def test_the_order_in_the_archives_does_not_matter_nor_a_leading_dot(arrange):
    arrange({f"./{name}": IMAGES[name] for name in reversed(IMAGES)},
            {f"./{name}": ANNOTATIONS[name] for name in reversed(ANNOTATIONS)})
    assert contents(arrange.folder) == ARRANGED


def test_without_any_trimap_there_are_no_masks(arrange):
    arrange(annotations={name: content for name, content in ANNOTATIONS.items() if "trimaps" not in name})
    assert contents(arrange.folder) == {
        name: content for name, content in ARRANGED.items() if "masks" not in name}


def test_what_a_killed_run_left_is_not_taken_over(arrange):
    leftover = arrange.folder.with_name("p1_data.part")
    (leftover / "train").mkdir(parents=True)
    (leftover / "train" / "9_9.jpg").touch()
    arrange()
    assert contents(arrange.folder) == ARRANGED and not leftover.exists()


def test_a_folder_that_exists_stays_as_it_is(arrange):
    arrange.folder.mkdir()
    (arrange.folder / "mine").write_text("mine")
    with pytest.raises(BadInput, match="p1_data exists: remove it, or name another folder"):
        arrange()
    assert contents(arrange.folder) == {"mine": b"mine"}


HOSTILE = [
    ("../outside", b""),
    ("images/../../outside", b""),
    ("/outside", b""),
    ("images/link", (tarfile.SYMTYPE, "../../outside")),
    ("images/link", (tarfile.SYMTYPE, "Bengal_3.jpg")),
    ("images/hard", (tarfile.LNKTYPE, "images/Bengal_3.jpg")),
    ("images/device", (tarfile.CHRTYPE, "")),
    ("images/disk", (tarfile.BLKTYPE, "")),
    ("images/pipe", (tarfile.FIFOTYPE, "")),
    ("images", (tarfile.SYMTYPE, "../..")),
    ("images/Bengal_3.jpg", (tarfile.SYMTYPE, "../../../outside")),
]


@pytest.mark.parametrize(("name", "content"), HOSTILE)
@pytest.mark.parametrize("first", [True, False])
def test_links_devices_and_paths_that_leave_the_folder_are_refused(arrange, name, content, first):
    members = {name: content, **IMAGES} if first else {**IMAGES, name: content}
    members[name] = content
    message = refused(arrange, members)
    assert "images.tar.gz holds" in message and name in message and message.endswith("fetch another")
    message = refused(arrange, annotations={**ANNOTATIONS, name: content})
    assert "annotations.tar.gz holds" in message


@pytest.mark.parametrize("lists", [
    {"trainval": b"../../outside 1 1 1\n"},
    {"test": b"Bengal_3\n"},
    {"test": b"Bengal_3 0 1 1\n"},
    {"test": b"Bengal_3 " + b"9" * 5000 + b"\n"},
    {"test": b"Bengal_3 3 1 1\n\n"},
    {"test": b"Bengal_3 3\nBengal_3 3\n"},
    {"test": b"Abyssinian_100 1 1 1\n"},
    {"test": b"Abyssinian_100 2 1 1\n"},
    {"test": b"Bengal_3 3\nSphynx_3 3\n"},
    {"test": b"\xff\xfe\n"},
    {"trainval": b"", "test": b""},
    {"test": None},
])
def test_lists_that_are_not_those_of_the_data_set_are_refused(arrange, lists):
    annotations = {**ANNOTATIONS, **{f"annotations/{name}.txt": content for name, content in lists.items()}}
    assert "does not hold the two lists of Oxford-IIIT Pet" in refused(arrange, annotations=annotations)


def test_an_archive_without_some_of_the_photos_is_refused(arrange):
    message = refused(arrange, {"images/Bengal_3.jpg": b"c3"})
    assert message.endswith("lacks 3 of 4 photos, images/Abyssinian_100.jpg among them: fetch another")
    assert "lacks 1 of 4 photos" in refused(arrange, {**IMAGES, "images/Bengal_3.jpg": None}), "a folder"


@pytest.mark.parametrize("damage", [
    lambda content: content[:-20],
    lambda content: content[:40],
    lambda content: b"",
    lambda content: b"<html>",
    lambda content: content[:60] + bytes([content[60] ^ 255]) + content[61:],
    lambda content: content[:-8] + bytes(4) + content[-4:],  # the checksum alone
    lambda content: content[:10] + 50 * b"\xff",
    lambda content: gzip.compress(2000 * b"no tar"),
])
def test_a_damaged_archive_is_refused(arrange, damage):
    assert "images.tar.gz is damaged" in refused(arrange, damage(archive(IMAGES)))
    assert "annotations.tar.gz is damaged" in refused(arrange, annotations=damage(archive(ANNOTATIONS)))


def test_an_archive_that_is_damaged_within_a_photo_is_refused(arrange):
    photo = " ".join(map(str, range(50_000))).encode()
    content = archive({**IMAGES, "images/basset_hound_1.jpg": photo})
    middle = len(content) // 2
    damaged = content[:middle] + 200 * b"\xff" + content[middle + 200:]
    assert "images.tar.gz is damaged" in refused(arrange, damaged)


def test_a_full_disk_leaves_nothing_and_is_named(arrange, monkeypatch):
    def copy(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", copy)
    with pytest.raises(OSError) as error:
        arrange()
    assert error.value.filename == str(arrange.folder) and not list(arrange.folder.parent.iterdir())
