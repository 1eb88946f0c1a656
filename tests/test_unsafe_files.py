"""Files from strangers: what would run code, take more memory than there is, or write where it should not."""

import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import textwrap
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import p1_eval
import p1_report
from common.errors import BadImage, BadInput
from common.files import read_tensors, refuse_nonfinite_weights
from datasets import decode, transforms
from models import catr
from models.checkpoint import open_checkpoint
from tests.helpers.fuzzing import examples

MIB = 2**20
REPOSITORY = Path(__file__).parents[1]


class Trap:
    """Unpickled without care, it makes the file `ran`."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.system, (f"touch {self.folder}/ran",)


def grown(work):
    """By how many MiB the work made the memory of this process grow at its most."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: earlier tests took more than these may
    before = peak()
    work()
    return peak() - before


def peak():
    """The most memory that this process held, in MiB."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def rewritten(source, target, change, compression=zipfile.ZIP_STORED):
    """A copy of a torch file in which `change(name, content)` gives the content of each record."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for record in old.infolist():
            new.writestr(record.filename, change(record.filename, old.read(record)))
    return target


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
    rewritten(path.with_suffix(".small"), path,
              lambda name, content: content.replace(struct.pack("<I", 77777), struct.pack("<I", 2 * 10**9)))


def claiming_of_old(path):
    torch.save({"weight": torch.zeros(77777)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", 77777), struct.pack("<I", 2 * 10**9)))


def compressed(path):
    torch.save({"weight": torch.zeros(10)}, path.with_suffix(".small"))
    rewritten(path.with_suffix(".small"), path, lambda name, content: bytes(300 * MIB) if "/data/" in name else content,
              zipfile.ZIP_DEFLATED)


def header(path):
    text = json.dumps({"weight": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def long_header(path):
    path.write_bytes(struct.pack("<Q", 10**15) + b"{" + bytes(100))


@pytest.mark.parametrize(("write", "words"), [
    (pickled, "opening it would run posix.system; save its weights alone"), (pickled_alone, "loader refuses it"),
    (repeated, "1,000,000,000,000 numbers, of which it stores fewer"), (sparse, "save its weights as dense tensors"),
    (without_numbers, "of which it stores fewer"), (claiming, "is damaged"), (claiming_of_old, "is damaged"),
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

    assert grown(read) < 200 and not (tmp_path / "ran").exists() and not recwarn.list


def test_weights_in_eight_bits_are_looked_at(tmp_path):
    """torch cannot ask them whether they are finite."""
    eighths = torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn)
    refuse_nonfinite_weights({"weight": eighths[:1]}, tmp_path / "weights.pt")
    with pytest.raises(BadInput, match="weights.pt is of no use: weight holds values that are not finite"):
        refuse_nonfinite_weights({"weight": eighths}, tmp_path / "weights.pt")


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
        with pytest.raises(BadImage, match="line.png: 60 x 60000 pixels: one side is more than 100 times the other"):
            decode.load_image(tmp_path / "line.png")

    assert grown(read) < 50


# Checkpoints of ours, changed by a stranger


def changed(saved, changes):
    content = {**saved, **changes.get("fields", {})}
    if "preprocessing" in changes:
        content["preprocessing"] = {**saved["preprocessing"], **changes["preprocessing"]}
    return content


@pytest.mark.parametrize(("changes", "words"), [
    ({"fields": {"arch": "vit_giant_patch14_clip_224"}}, "do not fit its own architecture"),
    ({"fields": {"arch": 7}}, "does not say which model"),
    ({"fields": {"labels": "0123"}}, "does not say"),
    ({"fields": {"labels": []}}, "of which classes"),
    ({"fields": {"labels": ["0", "1", "2", 3]}}, "of which classes"),
    ({"fields": {"class_names": ["a"]}}, "of which classes"),
    ({"fields": {"state_dict": [1]}}, "its weights do not fit"),
    ({"fields": {"state_dict": {"head.bias": 1}}}, "its weights do not fit"),
    ({"fields": {"preprocessing": 3}}, "its preprocessing"),
    ({"preprocessing": {"input_size": [3, 10**6, 10**6]}}, "its preprocessing"),
    ({"preprocessing": {"crop_pct": 1e-9}}, "its preprocessing"),
    ({"preprocessing": {"std": [0.5, 0.5, 0.0]}}, "its preprocessing"),
    ({"preprocessing": {"mean": [0.5]}}, "its preprocessing"),
    ({"preprocessing": {"interpolation": "best"}}, "its preprocessing"),
    ({"preprocessing": {"more": 1}}, "its preprocessing"),
])
def test_a_changed_checkpoint_is_refused(run, tmp_path, changes, words):
    torch.save(changed(torch.load(run / "best.pt", weights_only=True), changes), tmp_path / "changed.pt")

    def read():
        with pytest.raises(BadInput, match=f"^{tmp_path}/changed.pt.* {words}"):
            open_checkpoint(tmp_path / "changed.pt")

    assert grown(read) < 200


VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
                   st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
                   st.integers(0, 10**13).map(lambda size: torch.zeros(1).expand(size)))


@examples(25)
@given(data=st.data())
def test_any_field_of_any_value_is_read_or_refused(run, tmp_path, data):
    """Whatever one field holds, the checkpoint evaluates a photo, or the error is one line."""
    saved = torch.load(run / "best.pt", weights_only=True)
    inner = data.draw(st.sampled_from(["", "preprocessing", "state_dict"]))
    fields = saved[inner] if inner else saved
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(VALUES)
    torch.save(saved, tmp_path / "changed.pt")
    try:
        checkpoint = open_checkpoint(tmp_path / "changed.pt")
    except BadInput as error:
        assert "\n" not in str(error)
        return
    photo = transforms.evaluation_transform(checkpoint.preprocessing)(Image.new("RGB", (40, 30)))
    with torch.no_grad():
        assert checkpoint.model(photo[None]).shape == (1, len(checkpoint.labels))


@examples(25)
@given(data=st.data())
def test_any_captioner_of_any_sizes_is_read_or_refused(tmp_path, data):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
    config = catr.small_config(len(vocabulary))
    fields = {**catr.checkpoint_fields(config, vocabulary), "state_dict": {}}
    key = data.draw(st.sampled_from(sorted(fields["captioner"])))
    sizes = st.one_of(VALUES, st.lists(st.integers(-1, 10**12), min_size=4, max_size=4), st.integers(1, 10**12))
    fields["captioner"][key] = data.draw(sizes)
    torch.save(fields, tmp_path / "changed.pt")
    with pytest.raises(BadInput):  # for want of weights, if for nothing else
        catr.open_captioner(tmp_path / "changed.pt")


def test_an_evaluation_of_a_changed_file_leaves_nothing(run, shapes, tmp_path, capsys):
    repeated(tmp_path / "stranger.pt")
    code = p1_eval.main([str(shapes / "val"), str(tmp_path / "new" / "pred.csv"), "--checkpoint", str(tmp_path / "stranger.pt")])
    said = capsys.readouterr()
    assert code == 2 and said.err.count("\n") == 1 and said.out == "" and not (tmp_path / "new").exists()


def test_the_arrays_of_a_run_are_read_without_pickle(run, shapes, tmp_path, capsys):
    """NumPy's archives may hold pickles, too."""
    shutil.copytree(run, tmp_path / "run")
    assert p1_eval.main([str(shapes / "val"), "--checkpoint", str(tmp_path / "run" / "best.pt"), "--workers", "0"]) == 0
    np.savez(tmp_path / "run" / "eval.npz", names=np.array([Trap(tmp_path)], dtype=object))
    assert p1_report.main([str(tmp_path / "run"), "--output", str(tmp_path / "report")]) == 2
    assert "none of the runs can be used" in capsys.readouterr().err and not (tmp_path / "ran").exists()


def test_neither_help_nor_imports_use_the_network():
    """Everything of ours is imported, and each script asked for its help, where connecting and looking up names fail."""
    code = """
        import contextlib, importlib, io, pathlib, socket

        def refuse(*args, **kwargs):
            raise AssertionError("the network was used")

        socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
        for path in sorted(pathlib.Path().glob("*.py")):
            script = importlib.import_module(path.stem)
            if hasattr(script, "main"):
                with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as said:
                    script.main(["--help"])
                assert said.getvalue().startswith("usage: "), path
        for package in ("analysis", "common", "datasets", "engine", "models", "plots"):
            for path in pathlib.Path(package).glob("*.py"):
                importlib.import_module(f"{package}.{path.stem}")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
