"""On other people's machines: what notebooks, containers, mounts, batch systems and a Mac have or lack."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

import p1_eval
import p1_viz_attn
import p1_viz_posembed
from datasets import images
from engine import loader
from engine.step import OptimizerStep
from plots import drawing
from tests.helpers import forked
from tests.helpers.training import same, train, weights

REPOSITORY = Path(__file__).resolve().parents[2]
MATPLOTLIBRC = "text.usetex: True\nfont.size: 40\naxes.facecolor: red\n"
# Each script's main, in a process that has not imported matplotlib before it, nor what is MISSING.
IN_A_NOTEBOOK = """
import importlib, json, os, sys
import timm, torch
sys.modules.update(dict.fromkeys(os.environ.get("MISSING", "").split()))
assert "matplotlib" not in sys.modules
torch.set_num_threads(1)
for script, *arguments in json.load(sys.stdin):
    if not (process := os.fork()):
        os._exit(importlib.import_module(script).main(arguments))
    print(script, os.waitpid(process, 0)[1], flush=True)
"""


def call(command, **options):
    return subprocess.run(list(map(str, command)), text=True, capture_output=True, timeout=100,
                          **{"cwd": REPOSITORY, **options})


def test_neither_a_notebook_s_backend_nor_a_matplotlibrc_matters_to_a_script(
        shapes, run, tmp_path):
    """The same bytes of a figure, too, as in a process without either. All scripts import matplotlib through
    plots/ alone, see test_house.py; in a notebook they run in test_tour.py."""
    (tmp_path / "matplotlibrc").write_text(MATPLOTLIBRC)
    best, photo = run / "best.pt", next((shapes / "val").iterdir())
    calls = [
        ["p1_viz_posembed", "--checkpoint", best, "--output", "posembed.png"],
        ["p1_viz_attn", photo, "--checkpoint", best, "--output-dir", "attention", "--all"],
        ["report_page", "--output", "page.html", "--attention", "attention"]]
    environment = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline",
                   "PYTHONPATH": str(REPOSITORY)}
    done = call([sys.executable, "-c", IN_A_NOTEBOOK], cwd=tmp_path, env=environment,
                input=json.dumps([list(map(str, one)) for one in calls]))
    scripts = [name for name, *_ in calls]
    ends = [line for line in done.stdout.splitlines() if line.split(" ")[0] in scripts]
    assert ends == [f"{name} 0" for name in scripts], done.stderr
    clean = tmp_path / "clean.png"
    assert p1_viz_posembed.main(["--checkpoint", str(best), "--output", str(clean)]) == 0
    assert (tmp_path / "posembed.png").read_bytes() == clean.read_bytes()


def test_a_script_without_a_package_of_an_extra_names_the_extra(captioners, tmp_path):
    data, checkpoint = captioners / "coco", captioners / "captioner.pt"
    calls = {"p2_train": ["--data", data, "--output", tmp_path / "run"],
             "p2_eval": ["--data", data, "--checkpoint", checkpoint],
             "p2_caption_viz": [data, "--checkpoint", checkpoint, "--output-dir", tmp_path / "figures"],
             "report_page": ["--captions", data, "--output", tmp_path / "page.html"]}
    environment = {**os.environ, "MISSING": "tokenizers sacrebleu jinja2"}
    done = call([sys.executable, "-c", IN_A_NOTEBOOK], env=environment,
                input=json.dumps([[name, *map(str, arguments)] for name, arguments in calls.items()]))
    assert done.stdout.splitlines() == [f"{name} {2 << 8}" for name in calls], done.stderr
    assert done.stderr.splitlines() == [
        f"error: {package} is missing: pip install '{REPOSITORY}[{extra}]'" for package, extra in (
            ("tokenizers", "captions"), ("sacrebleu", "captions"), ("tokenizers", "captions"),
            ("jinja2", "report"))]
    assert not list(tmp_path.glob("*/*")), "nothing is left behind"


def in_a_namespace(*command):
    """The command that runs another with 1 MiB of shared memory, or skip."""
    mount = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"', "sh"]
    try:
        subprocess.run([*mount, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no mount namespace of one's own here")
    return [*mount, *command]


def test_a_container_s_little_shared_memory_is_enough_without_workers(shapes, tmp_path):
    command = in_a_namespace(sys.executable, "p1_train.py", "--data", shapes, "--output", tmp_path / "run",
                             "--arch", "test_vit", "--scratch", "--epochs", "1", "--optimizer", "adam")
    done = call(command)
    assert done.returncode == 0 and " MiB free: --workers 0 (docker" in done.stderr, done.stderr
    assert (tmp_path / "run" / "best.pt").exists() and "Traceback" not in done.stderr


@pytest.fixture
def lossy(monkeypatch):
    """A function that has the process that loads a photo killed for it."""
    load_image = images.load_image
    # How long the rest of a broken iterator is waited for.
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)

    def arm(name):
        def load_or_die(path):
            if path.name == name and torch.utils.data.get_worker_info():
                os.kill(os.getpid(), signal.SIGKILL)
            return load_image(path)
        monkeypatch.setattr(images, "load_image", load_or_die)

    return arm


def test_a_killed_loader_ends_evaluation_in_one_line(shapes, best, lossy, capsys):
    lossy("2_1.jpg")
    code = p1_eval.main([str(shapes / "val"), "--checkpoint", str(best), "--workers", "1",
                         "--batch-size", "4", "--device", "cpu"])
    error, = [line for line in capsys.readouterr().err.splitlines() if not line.lstrip("\r").startswith(" ")]
    assert code == 3 and error.startswith("error: a process that loads images was killed, perhaps for want")


def test_a_killed_loader_ends_training_with_its_last_step_saved(shapes, monkeypatch, tmp_path, capsys):
    """Killed between the two passes of SAM's second step, which is finished."""
    flags = "--epochs", 1, "--sam", "--holdout", 0, "--batch-size", 2
    assert train(shapes, tmp_path / "straight", *flags) == 0
    passes, forward_backward = [], OptimizerStep._forward_backward
    others = set(multiprocessing.active_children())  # of other tests

    def killing(self, *args):
        passes.append(None)
        if len(passes) == 4:
            loader, = set(multiprocessing.active_children()) - others
            loader.kill()
            time.sleep(0.2)  # in which torch would raise its error
        return forward_backward(self, *args)

    monkeypatch.setattr(OptimizerStep, "_forward_backward", killing)
    assert train(shapes, tmp_path / "run", *flags, "--workers", 1) == 3
    error = capsys.readouterr().err
    assert "--resume goes on after step" in error and "Traceback" not in error
    assert train(shapes, tmp_path / "run", *flags, "--workers", 1, "--resume") == 0
    assert same(weights(tmp_path / "straight"), weights(tmp_path / "run"))


def test_a_long_folder_for_temporary_files_is_no_obstacle(shapes, best, tmp_path):
    long = tmp_path / ("x" * 90)
    long.mkdir()
    arguments = list(map(str, [shapes / "val", "--checkpoint", best, "--workers", 1]))
    process = forked.fresh(evaluate_in_tmpdir, arguments, log=tmp_path / "log", TMPDIR=str(long))
    process.join(timeout=60)
    assert process.exitcode == 0 and "accuracy" in (tmp_path / "log").read_text()


def evaluate_in_tmpdir(arguments):
    tempfile.tempdir = None  # what Python remembers of the folder
    multiprocessing.current_process()._config.pop("tempdir", None)
    assert tempfile.gettempdir() == os.environ["TMPDIR"]
    return p1_eval.main(arguments)


def test_a_mount_that_refuses_permissions_is_written_to(shapes, run, tmp_path):
    if not (shutil.which("bindfs") and Path("/dev/fuse").exists()):
        pytest.skip("no bindfs, or no FUSE, here")
    mount = tmp_path / "mount"
    (tmp_path / "store").mkdir()
    mount.mkdir()
    subprocess.run(["bindfs", "--chmod-deny", tmp_path / "store", mount], check=True)
    try:
        (mount / "file").touch()
        with pytest.raises(PermissionError):
            (mount / "file").chmod(0o600)
        assert train(shapes, mount / "run", "--epochs", 1) == 0
        assert {"last.pt", "best.pt", "config.json", "metrics.csv"} <= set(os.listdir(mount / "run"))
    finally:
        subprocess.run(["fusermount", "-u", mount], check=True)


def test_a_mac_has_no_affinity_and_starts_processes_anew(shapes, run, monkeypatch, tmp_path):
    """With the same weights, and figures."""
    flags = "--epochs", 1, "--holdout", 0
    assert train(shapes, tmp_path / "linux", *flags) == 0
    monkeypatch.delattr(os, "sched_getaffinity")
    for module in loader, drawing:
        monkeypatch.setattr(module, "START_METHOD", "spawn")
    monkeypatch.setattr(drawing, "usable_cores", lambda: 0)  # one process draws
    assert train(shapes, tmp_path / "mac", *flags, "--workers", 1) == 0
    assert same(weights(tmp_path / "linux"), weights(tmp_path / "mac"))
    assert p1_viz_attn.main([str(shapes / "val" / "0_0.jpg"), "--checkpoint", str(run / "best.pt"),
                             "--output-dir", str(tmp_path / "figures"), "--device", "cpu"]) == 0
    assert (tmp_path / "figures" / "0_0.png").exists()
