"""Files from strangers: what would run code or take more memory than there is; and files to write."""

import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from common.errors import BadInput
from common.files import read_tensors, refuse_unwritable, write_text
from tests.helpers.strangers import Trap, grown


def rewrite(source, target, change, compression=zipfile.ZIP_STORED):
    """Copy a torch file; `change(name, content)` gives the content of each of its records."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for record in old.infolist():
            new.writestr(record.filename, change(record.filename, old.read(record)))


def pickled(path):
    torch.save({"state_dict": Trap(path.parent)}, path)


def pickled_alone(path):
    path.write_bytes(pickle.dumps(Trap(path.parent)))


def repeated(path):
    torch.save({"weight": torch.zeros(1).expand(10**6, 10**6)}, path)


def sparse(path):
    torch.save({"weight": torch.sparse_coo_tensor([[0]], [1.0], (10**12,), check_invariants=True)}, path)


def without_numbers(path):
    torch.save({"weight": torch.empty(10**12, device="meta")}, path)


def claiming(path):
    torch.save({"weight": torch.zeros(77777)}, path.with_suffix(".small"))
    rewrite(path.with_suffix(".small"), path,
            lambda name, content: content.replace(struct.pack("<I", 77777), struct.pack("<I", 2 * 10**9)))


def claiming_of_old(path):
    torch.save({"weight": torch.zeros(77777)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", 77777), struct.pack("<I", 2 * 10**9)))


def compressed(path):
    torch.save({"weight": torch.zeros(10)}, path.with_suffix(".small"))
    zeros = bytes(120 * 2**20)
    rewrite(path.with_suffix(".small"), path, lambda name, content: zeros if "/data/" in name else content,
            zipfile.ZIP_DEFLATED)


def header(path):
    text = json.dumps({"weight": {"dtype": "F32", "shape": [10**12],
                                  "data_offsets": [0, 4 * 10**12]}}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def long_header(path):
    path.write_bytes(struct.pack("<Q", 10**15) + b"{" + bytes(100))


@pytest.mark.parametrize(("write", "words"), [
    (pickled, "opening it would run posix.system; save its weights alone"),
    (pickled_alone, "loader refuses it"),
    (repeated, "1,000,000,000,000 numbers, of which it stores fewer"),
    (sparse, "save its weights as dense tensors"),
    (without_numbers, "of which it stores fewer"), (claiming, "is damaged|stores fewer"),
    (claiming_of_old, "is damaged"),
    (compressed, "is a compressed archive"), (header, "is damaged"), (long_header, "is damaged"),
])
def test_weights_that_run_code_or_claim_memory_are_refused(tmp_path, recwarn, write, words):
    path = tmp_path / "stranger.pt"
    write(path)
    recwarn.clear()

    def read():
        with pytest.raises(BadInput, match=words) as caught:
            read_tensors(path)
        assert str(caught.value).startswith(f"{path} ") and "\n" not in str(caught.value)

    assert grown(read) < 80 and not (tmp_path / "ran").exists() and not recwarn.list


def test_a_mount_without_permissions_is_written_to(tmp_path, monkeypatch):
    def refuse(path, mode, **options):
        raise PermissionError(1, "Operation not permitted", path)

    monkeypatch.setattr(os, "chmod", refuse)
    with pytest.raises(PermissionError):
        tmp_path.chmod(0o700)
    write_text(tmp_path / "file.txt", "x")
    assert (tmp_path / "file.txt").read_text() == "x"


def test_whether_a_file_can_be_written_is_asked_without_making_anything(tmp_path):
    refuse_unwritable(tmp_path / "new" / "folder" / "file.txt")
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError):
        refuse_unwritable(Path("/proc/new/file.txt"))
    with pytest.raises(BadInput, match="is a folder: name a file"):
        refuse_unwritable(tmp_path)
