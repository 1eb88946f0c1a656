"""Small archives in the form of Oxford-IIIT Pet's."""

import io
import tarfile

IMAGES = {"images": None, "images/Abyssinian_100.jpg": b"a100", "images/basset_hound_1.jpg": b"b1",
          "images/Abyssinian_2.jpg": b"a2", "images/Bengal_3.jpg": b"c3", "images/Bengal_3.mat": b"unused"}
ANNOTATIONS = {"annotations/trainval.txt": b"basset_hound_1 2 2 1\nAbyssinian_100 1 1 1\n",
               "annotations/test.txt": b"Abyssinian_2 1 1 1\nBengal_3 3 1 2\n",
               "annotations/trimaps/Abyssinian_100.png": b"t100", "annotations/trimaps/Bengal_3.png": b"t3",
               "annotations/trimaps/._Bengal_3.png": b"unused"}
ARRANGED = {"train/1_1.jpg": b"b1", "train/0_100.jpg": b"a100", "val/0_2.jpg": b"a2", "val/2_3.jpg": b"c3",
            "masks/train/0_100.png": b"t100", "masks/val/2_3.png": b"t3",
            "classes.txt": b"Abyssinian\nbasset_hound\nBengal\n"}


def archive(members):
    """The bytes of a .tar.gz of {name: content}: bytes of a file, None for a folder, or (type, target)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = content or (tarfile.DIRTYPE, "")
                tar.addfile(info)
    return out.getvalue()


def contents(folder):
    """{path below the folder: bytes} of all files."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
