"""hw_download.sh against an HTTP server on the loopback address."""

import hashlib
import http.server
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.helpers.archives import ANNOTATIONS, ARRANGED, IMAGES, archive, contents

SCRIPT = Path(__file__).parents[2] / "hw_download.sh"
TOOLS = ("awk", "bash", "curl", "cut", "dirname", "grep", "head", "md5sum", "mkdir", "mv", "rm", "sed",
         "sha256sum", "tr", "uniq", "wc")
CONTENT = bytes(range(256)) * 400  # 102,400 bytes
PAGE = b"\n<!DOCTYPE html>\n<html><title>Log in</title></html>\n"
VIT = "downloads/vit-tiny.safetensors"
PART = f"{VIT}.part"
NOTES = "downloads/checksums.txt"

pytestmark = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")


class Site:
    """What a server offers, how it misbehaves, and what it was asked."""

    def __init__(self):
        self.files, self.redirects, self.asked = {"/vit": CONTENT}, {}, []
        self.cuts = []  # bytes after which the next answers break off; None for a whole one
        self.refusals = []  # statuses of the next answers
        self.stalls = threading.Event()  # answers break off by falling silent
        self.ranges = self.lengths = True
        self.headers = {"ETag": '"1"'}


def handler(site):
    """The request handler class of a Site."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            site.asked.append((self.path, self.headers["Range"]))
            path = self.path.removeprefix("http://pets.example")  # as a proxy is asked
            if site.refusals:
                return self.send_error(site.refusals.pop(0))
            if path in site.redirects:
                self.send_response(302)
                self.send_header("Location", site.redirects[path])
                self.send_header("ETag", f'"{len(site.asked)}"')
                self.send_header("Content-Length", "0")
                return self.end_headers()
            if path not in site.files:
                return self.send_error(404)
            self.send_file(site.files[path], int((self.headers["Range"] or "=0-")[:-1].partition("=")[2]))

        def send_file(self, body, start):
            start = start if site.ranges else 0
            if start >= len(body) > 0:
                return self.send_error(416)
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            if site.lengths:
                self.send_header("Content-Length", str(len(body) - start))
            for name, value in site.headers.items():
                self.send_header(name, value)
            self.end_headers()
            end = site.cuts.pop(0) if site.cuts else None
            self.wfile.write(body[start:end])
            self.wfile.flush()
            while end is not None and site.stalls.is_set():
                time.sleep(0.01)

        def log_message(self, *args):
            pass

    return Handler


@pytest.fixture
def site():
    site = Site()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(site))
    site.url, site.close = f"http://127.0.0.1:{server.server_port}", server.server_close
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield site
    site.stalls.clear()
    server.shutdown()
    server.server_close()
    thread.join()


class Folder:
    """Where the script runs, with few tools and a `sleep` that takes no time; vit-tiny is the site's."""

    def __init__(self, root, site):
        self.root, self.bin = root / "here it is", root / "bin"
        self.variables = {"VIT_TINY_URL": f"{site.url}/vit"}
        self.root.mkdir()
        self.bin.mkdir()
        for name in TOOLS:
            (self.bin / name).symlink_to(shutil.which(name))
        self.command("python3", f'exec {sys.executable} -S "$@"')  # the standard library has to do
        self.command("sleep", "exit 0")

    def command(self, name, script):
        (self.bin / name).write_text(f"#!{shutil.which('bash')}\n{script}\n")
        (self.bin / name).chmod(0o755)

    def start(self, *parts, **variables):
        environment = {"PATH": str(self.bin), "PYTHONDONTWRITEBYTECODE": "1", **self.variables, **variables}
        return subprocess.Popen(
            [self.bin / "bash", SCRIPT, *parts], cwd=self.root, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)

    def run(self, *parts, **variables):
        """(exit code, lines of stdout, stderr)."""
        process = self.start(*parts, **variables)
        out, err = process.communicate(timeout=60)
        return process.returncode, out.splitlines(), err

    def fetches(self, *parts, **variables):
        """The lines that a run without an error prints."""
        code, out, err = self.run(*parts, **variables)
        assert (code, err) == (0, ""), err
        return out

    def fails(self, *parts, **variables):
        """The one line of the error."""
        code, _, err = self.run(*parts, **variables)
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
        return err

    def files(self):
        return sorted(contents(self.root))

    def read(self, name=VIT):
        return (self.root / name).read_bytes()


@pytest.fixture
def folder(tmp_path, site):
    return Folder(tmp_path, site)


def test_a_file_is_fetched_once_and_its_checksum_noted(site, folder):
    assert folder.fetches("vit-tiny") == [
        f"{VIT}: no published checksum; its SHA-256 is noted in {NOTES}, to be compared",
        f"{VIT} is there"]
    assert folder.read() == CONTENT and folder.files() == [NOTES, VIT]
    assert folder.read(NOTES).decode() == f"{hashlib.sha256(CONTENT).hexdigest()}  {VIT}\n"
    assert site.asked == [("/vit", None)]
    assert folder.fetches("vit-tiny") == [f"{VIT} is there"] and len(site.asked) == 1


# Transfers that break off


def test_a_transfer_that_breaks_off_goes_on_where_it_stopped(site, folder):
    site.cuts = [1000, 3000]
    folder.fetches("vit-tiny")
    assert site.asked == [("/vit", None), ("/vit", "bytes=1000-"), ("/vit", "bytes=3000-")]
    assert folder.read() == CONTENT


def test_a_server_that_cannot_go_on_begins_anew(site, folder):
    site.cuts, site.ranges = [1000], False
    folder.fetches("vit-tiny")
    assert folder.read() == CONTENT and site.asked[-1] == ("/vit", None)


def test_a_server_that_can_neither_go_on_nor_finish_is_given_up(site, folder):
    site.cuts, site.ranges = 20 * [1000], False
    assert "the transfer stopped" in folder.fails("vit-tiny") and len(site.asked) < 9


def kill_amid(folder, site, more):
    """Kill a download of vit-tiny when some of the next `more` bytes have come; the size of its part."""
    part, before = folder.root / PART, len(folder.read(PART)) if PART in folder.files() else 0
    site.cuts = [more]
    site.stalls.set()
    process = folder.start("vit-tiny")
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size > before) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    site.stalls.clear()
    assert not (folder.root / VIT).exists() and before < part.stat().st_size <= before + more
    return part.stat().st_size


def test_a_killed_download_goes_on_with_the_next(site, folder):
    size = kill_amid(folder, site, 5000)
    folder.fetches("vit-tiny")
    assert folder.read() == CONTENT and folder.files() == [NOTES, VIT]
    assert site.asked[-1] == ("/vit", f"bytes={size}-")


@pytest.mark.parametrize("ranges", [True, False])
def test_a_part_that_is_whole_is_not_fetched_again(site, folder, ranges):
    site.ranges = ranges
    kill_amid(folder, site, len(CONTENT) - 1)
    (folder.root / PART).write_bytes(CONTENT)
    del site.asked[:]
    folder.fetches("vit-tiny")
    assert folder.read() == CONTENT and folder.files() == [NOTES, VIT] and site.asked == []


@pytest.mark.parametrize(("header", "new"), [
    ("ETag", CONTENT[::-1]), ("Last-Modified", CONTENT[::-1]), ("Last-Modified", CONTENT[:500]),
    (None, CONTENT[::-1][:-9]), (None, CONTENT[::-1] + b"more")])
def test_half_of_a_file_that_has_changed_since_is_dropped(site, folder, header, new):
    site.cuts = [1000] + 3 * [0]
    site.headers = {header: '"1"'} if header else {}
    assert "run it again" in folder.fails("vit-tiny")
    site.headers, site.files["/vit"] = ({header: '"2"'} if header else {}), new
    folder.fetches("vit-tiny")
    assert folder.read() == new


def test_a_file_that_changes_amid_a_run_that_is_killed_is_not_mixed(site, folder):
    site.cuts = [1000] + 3 * [0]
    folder.fails("vit-tiny")
    site.headers, site.files["/vit"] = {"ETag": '"2"'}, CONTENT[::-1]
    kill_amid(folder, site, 9000)
    folder.fetches("vit-tiny")
    assert folder.read() == CONTENT[::-1]


def test_a_part_of_an_unknown_file_is_dropped(site, folder):
    (folder.root / "downloads").mkdir()
    (folder.root / PART).write_bytes(b"x" * 1000)
    folder.fetches("vit-tiny")
    assert folder.read() == CONTENT and site.asked == [("/vit", None)]


def test_a_server_that_stays_silent_is_given_up(site, folder):
    site.cuts = [1000] + 9 * [0]
    assert folder.fails("vit-tiny") == (
        f"error: {site.url}/vit: the transfer stopped (curl: 18, HTTP 206): "
        "check the network, and run it again\n")
    assert folder.read(PART) == CONTENT[:1000] and len(site.asked) == 4


def test_a_server_that_is_busy_is_asked_again(site, folder):
    site.refusals = [503, 416]
    folder.fetches("vit-tiny")
    assert folder.read() == CONTENT and len(site.asked) == 3


def test_a_server_that_does_not_tell_the_size(site, folder):
    site.lengths = False
    folder.fetches("vit-tiny")
    assert folder.read() == CONTENT


# What is not the file


def test_a_missing_file_and_a_missing_server_are_errors(site, folder):
    assert folder.fails("vit-tiny", VIT_TINY_URL=f"{site.url}/none") == (
        f"error: {site.url}/none: not found or not allowed (HTTP 404): "
        "log in, or set VIT_TINY_URL to a mirror\n")
    site.refusals = [403]
    assert folder.fails("vit-tiny") == (
        f"error: {site.url}/vit: not found or not allowed (HTTP 403): "
        "log in, or set VIT_TINY_URL to a mirror\n")
    site.close()
    assert folder.fails("catr", CATR_URL=f"{site.url}/catr") == (
        f"error: {site.url}/catr: the transfer stopped (curl: 7, HTTP 000): "
        "check the network, and run it again\n")
    assert folder.files() == []


@pytest.mark.parametrize(("page", "kind"), [
    (PAGE, "text/html; charset=utf-8"), (b"Log in first", "text/html"), (PAGE, "application/octet-stream"),
    (b"\xef\xbb\xbf" + PAGE, None)])
def test_a_web_page_is_not_taken_for_a_file(site, folder, page, kind):
    site.files["/login"], site.redirects["/hub"] = page, f"{site.url}/login"
    site.headers = {"Content-Type": kind} if kind else {}
    assert folder.fails("vit-tiny", VIT_TINY_URL=f"{site.url}/hub") == (
        f"error: {site.url}/hub answered with a web page, not a file: "
        "log in, or set VIT_TINY_URL to a mirror\n")
    assert folder.files() == [], "no checksum of it is noted"
    site.headers = {}
    folder.fetches("vit-tiny")
    assert folder.read() == CONTENT


def test_a_web_page_does_not_cost_the_part_that_has_come(site, folder):
    site.cuts = [1000] + 3 * [0]
    folder.fails("vit-tiny")
    site.files["/vit"], site.ranges, site.headers = PAGE, False, {"Content-Type": "text/html"}
    assert "answered with a web page" in folder.fails("vit-tiny")
    site.files["/vit"], site.ranges, site.headers = CONTENT, True, {"ETag": '"1"'}
    folder.fetches("vit-tiny")
    assert folder.read() == CONTENT and site.asked[-1] == ("/vit", "bytes=1000-")


def test_a_web_page_that_an_older_version_took_for_a_file_is_refused(site, folder):
    (folder.root / "downloads").mkdir()
    (folder.root / VIT).write_bytes(PAGE)
    (folder.root / NOTES).write_text(f"{hashlib.sha256(PAGE).hexdigest()}  {VIT}\n")
    assert folder.fails("vit-tiny") == (
        f"error: {VIT} is a web page, not a file: remove it, and run this again\n")


def test_a_pinned_checksum_that_does_not_match_keeps_the_file_out(site, folder):
    site.files["/vocab"], variables = b"[PAD]\n", {"VOCAB_URL": f"{site.url}/vocab"}
    actual = hashlib.sha256(b"[PAD]\n").hexdigest()
    pinned = "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
    assert folder.fails("vocab", **variables) == (
        f"error: downloads/vocab.txt: its checksum is {actual}, not {pinned}, as pinned or else noted in "
        f"{NOTES} (remove that line if the new one is right): the download was removed\n")
    assert folder.files() == []
    folder.fetches("vocab", **variables, VOCAB_SHA256=actual)
    assert folder.files() == ["downloads/vocab.txt"]


def test_a_noted_checksum_is_compared_ever_after(site, folder):
    folder.fetches("vit-tiny")
    (folder.root / VIT).write_bytes(CONTENT[:-1])
    assert f"error: {VIT}: its checksum is " in folder.fails("vit-tiny")
    (folder.root / VIT).unlink()
    site.files["/vit"] = CONTENT[::-1]
    assert folder.fails("vit-tiny").endswith(
        f"noted in {NOTES} (remove that line if the new one is right): the download was removed\n")
    assert folder.files() == [NOTES]


# Where from, and where to


def test_redirections_are_followed(site, folder):
    site.redirects["/hub"], site.cuts, site.headers = f"{site.url}/vit", [1000], {"Last-Modified": "today"}
    folder.fetches("vit-tiny", VIT_TINY_URL=f"{site.url}/hub")
    assert folder.read() == CONTENT and site.asked[-1] == ("/vit", "bytes=1000-")


def test_a_proxy_is_asked(site, folder):
    folder.fetches("vit-tiny", VIT_TINY_URL="http://pets.example/vit", http_proxy=site.url)
    assert site.asked == [("http://pets.example/vit", None)] and folder.read() == CONTENT


def test_a_file_url(folder, tmp_path):
    (tmp_path / "a mirror [1]").mkdir()
    (tmp_path / "a mirror [1]" / "vit").write_bytes(CONTENT)
    for space in ("%20", " "):
        folder.fetches("vit-tiny", VIT_TINY_URL=f"file://{tmp_path}/a{space}mirror{space}[1]/vit")
        assert folder.read() == CONTENT and folder.files() == [NOTES, VIT]
        (folder.root / VIT).unlink()
    (folder.root / PART).write_bytes(b"of another file, fetched from elsewhere")
    (folder.root / f"{PART}.headers").write_text('ETag: "1"')
    folder.fetches("vit-tiny", VIT_TINY_URL=f"file://{tmp_path}/a%20mirror%20[1]/vit")
    assert folder.read() == CONTENT
    assert folder.fails("catr", CATR_URL=f"file://{tmp_path}/none") == (
        f"error: file://{tmp_path}/none: not found or not allowed (HTTP 000): "
        "log in, or set CATR_URL to a mirror\n")
    (tmp_path / "page").write_bytes(PAGE)
    assert "answered with a web page" in folder.fails("catr", CATR_URL=f"file://{tmp_path}/page")


def test_a_full_disk_is_one_line(folder):
    (folder.root / "downloads").mkdir()
    (folder.root / PART).symlink_to("/dev/full")
    (folder.root / f"{PART}.headers").write_text('ETag: "1"')
    assert folder.fails("vit-tiny") == (
        f"error: no space is left for {VIT}: make room, and run this again to go on\n")


def test_a_trained_checkpoint_and_the_line_that_evaluates_it(site, folder):
    site.files["/best.pt"] = CONTENT
    variables = {"CHECKPOINT_URL": f"{site.url}/best.pt",
                 "CHECKPOINT_SHA256": hashlib.sha256(CONTENT).hexdigest()}
    for _ in range(2):
        assert folder.fetches("checkpoint", **variables, CHECKPOINT_EXPECT="0.942")[-1] == (
            "Evaluate it: python p1_eval.py p1_data/val --checkpoint downloads/checkpoint.pt --expect 0.942")
    assert folder.read("downloads/checkpoint.pt") == CONTENT
    for missing in variables:
        assert "set CHECKPOINT_URL and CHECKPOINT_SHA256" in folder.fails("vit-tiny", "checkpoint", **{
            **variables, missing: ""})
    assert not (folder.root / VIT).exists(), "nothing is fetched before all parts are known to be possible"


def test_unknown_parts_and_help_ask_nobody(site, folder):
    assert folder.fails("pets", "cats") == (
        "error: cats is no part: choose among "
        "pets vit-tiny vit-small vit-base catr catr-v1 catr-v2 vocab checkpoint\n")
    assert folder.fails("pets vit-tiny").startswith("error: pets vit-tiny is no part")
    assert folder.fails("cat").startswith("error: cat is no part")
    out = folder.fetches("--help")
    assert out[0].startswith("Fetch what the real runs need") and out[-1].endswith("2 for an error.")
    for tool in ("sha256sum", "python3", "curl"):
        (folder.bin / tool).unlink()
        assert folder.fails("catr") == f"error: no {tool}: install it\n"
    assert site.asked == [] and folder.files() == []


def test_without_a_name_all_that_it_takes_is_fetched(site, folder):
    variables = pets(site)
    for name in ("VIT_BASE", "CATR", "VOCAB"):
        site.files[f"/{name}"], variables[f"{name}_URL"] = CONTENT, f"{site.url}/{name}"
    folder.fetches(**variables, VOCAB_SHA256=hashlib.sha256(CONTENT).hexdigest())
    assert [name for name in folder.files() if not name.startswith("p1_data/")] == [
        "downloads/catr.pth", NOTES, "downloads/vit-base.safetensors", "downloads/vocab.txt"]
    assert contents(folder.root / "p1_data") == ARRANGED


# Oxford-IIIT Pet


def pets(site, images=IMAGES, annotations=ANNOTATIONS):
    variables = {}
    for name, members in (("IMAGES", images), ("ANNOTATIONS", annotations)):
        site.files[f"/{name}"] = archive(members)
        variables[f"PETS_{name}_URL"] = f"{site.url}/{name}"
        variables[f"PETS_{name}_MD5"] = hashlib.md5(site.files[f"/{name}"]).hexdigest()
    return variables


def test_pets_in_the_layout_of_the_course(site, folder):
    (folder.root / "datasets").mkdir()
    (folder.root / "datasets" / "__init__.py").write_text("raise SystemExit('another package')")
    assert folder.fetches("pets", **pets(site))[-1] == "p1_data: 2 photos in train, 2 in val, 3 classes"
    assert contents(folder.root / "p1_data") == ARRANGED
    assert folder.files() == ["datasets/__init__.py", *sorted(f"p1_data/{name}" for name in ARRANGED)]
    assert folder.fetches("pets", **pets(site)) == ["p1_data is there"]


def test_archives_that_do_not_match_or_cannot_be_used_are_one_line(site, folder):
    variables = pets(site, {**IMAGES, "../outside": b""})
    assert "not 0000" in folder.fails("pets", **{**variables, "PETS_ANNOTATIONS_MD5": 32 * "0"})
    assert folder.files() == ["downloads/images.tar.gz"]
    assert "images.tar.gz holds ../outside" in folder.fails("pets", **variables)
    assert folder.files() == ["downloads/annotations.tar.gz", "downloads/images.tar.gz"]
