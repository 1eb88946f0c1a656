"""Files from strangers, given to the scripts, and what the scripts must not do unasked."""

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import p1_eval
import p1_report
from tests.helpers.strangers import Trap

REPOSITORY = Path(__file__).parents[2]


def test_an_evaluation_of_a_changed_file_leaves_nothing(shapes, tmp_path, capsys):
    torch.save({"weight": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "stranger.pt")
    arguments = [shapes / "val", tmp_path / "new" / "pred.csv", "--checkpoint", tmp_path / "stranger.pt"]
    assert p1_eval.main(list(map(str, arguments))) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and printed.out == "" and not (tmp_path / "new").exists()


def test_the_arrays_of_a_run_are_read_without_pickle(run, shapes, tmp_path, capsys):
    """NumPy's archives may hold pickles, too."""
    shutil.copytree(run, tmp_path / "run")
    arguments = [shapes / "val", "--checkpoint", tmp_path / "run" / "best.pt", "--workers", "0"]
    assert p1_eval.main(list(map(str, arguments))) == 0
    np.savez(tmp_path / "run" / "eval.npz", names=np.array([Trap(tmp_path)], dtype=object))
    assert p1_report.main([str(tmp_path / "run"), "--output", str(tmp_path / "report")]) == 2
    assert "none of the runs can be used" in capsys.readouterr().err and not (tmp_path / "ran").exists()


def test_neither_help_nor_imports_use_the_network():
    """Everything of ours is imported, and each script asked for its help, where connecting and looking up
    names fail."""
    code = """
        import contextlib, importlib, io, pathlib, socket

        def refuse(*args, **kwargs):
            raise AssertionError("the network was used")

        socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
        for path in sorted(pathlib.Path().glob("*.py")):
            script = importlib.import_module(path.stem)
            if hasattr(script, "main"):
                with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as text:
                    script.main(["--help"])
                assert text.getvalue().startswith("usage: "), path
        packages = [path.parent for path in pathlib.Path().glob("*/__init__.py")]
        assert len(packages) >= 8, packages
        for package in packages:
            for path in package.glob("*.py"):
                if path.stem != "__main__":
                    importlib.import_module(f"{package}.{path.stem}")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=REPOSITORY, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr


def test_of_large_photos_and_of_broken_metadata_nothing_but_our_own_words_is_printed(tmp_path):
    """In a process of its own, since pytest has its own filter of warnings."""
    exif = b"Exif\0\0MM\0*\xff\xff\xff\xff"
    Image.new("RGB", (12, 10)).save(tmp_path / "large.jpg", exif=exif)
    code = """
        import sys
        from PIL import Image
        from datasets.decode import load_image
        Image.MAX_IMAGE_PIXELS = 100  # Pillow warns of more, and refuses twice as many
        print(load_image(sys.argv[1]).size)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), tmp_path / "large.jpg"],
                          cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("(12, 10)\n", "")
