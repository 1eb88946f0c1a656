"""hw_download.sh against an HTTP server on the loopback address, with curl and with wget."""

import hashlib
import http.server
import io
import os
import shutil
import signal
import subprocess
import tarfile
import threading
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "hw_download.sh"
TOOLS = ("bash", "awk", "cat", "cp", "cut", "find", "grep", "gzip", "ls", "md5sum", "mkdir", "mv", "rm", "sed", "sha256sum",
         "sort", "tar", "tr", "wc")
CONTENT = bytes(range(256)) * 400  # 102,400 bytes


class Site:
    """What a server offers, how it misbehaves, and what it was asked."""

    def __init__(self):
        self.files, self.redirects, self.asked = {}, {}, []
        self.cuts = []  # bytes after which the next answers break off; None for a whole one
        self.stalls = threading.Event()  # answers break off by falling silent
        self.ranges = self.heads = True
        self.etag = "1"

    def gets(self):
        return [where for method, where in self.asked if method == "GET"]


@pytest.fixture
def site():
    site = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            site.asked.append((self.command, (self.path, self.headers["Range"])))
            path = self.path.removeprefix("http://pets.example")  # as a proxy is asked
            if path in site.redirects:
                self.send_response(302)
                self.send_header("Location", site.redirects[path])
                self.send_header("Content-Length", "0")
                return self.end_headers()
            if path not in site.files or self.command == "HEAD" and not site.heads:
                return self.send_error(404 if path not in site.files else 405)
            body, start = site.files[path], 0
            if site.ranges and self.headers["Range"]:
                start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            if start >= len(body) > 0:
                return self.send_error(416)
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.send_header("Content-Length", str(len(body) - start))
            self.send_header("ETag", f'"{site.etag}"')
            self.end_headers()
            if self.command == "GET":
                end = site.cuts.pop(0) if site.cuts else None
                self.wfile.write(body[start:end])
                self.wfile.flush()
                while end is not None and site.stalls.is_set():
                    time.sleep(0.01)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.url, site.close = f"http://127.0.0.1:{server.server_port}", server.server_close
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield site
    site.stalls.clear()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(params=["curl", "wget"])
def tool(request):
    if not shutil.which(request.param):
        pytest.skip(f"{request.param} is not installed")
    return request.param


class Folder:
    """Where the script runs: a folder of its own, and a PATH that holds one of both tools, and a `sleep` that takes no time."""

    def __init__(self, root, tool):
        self.root, self.bin = root / "here it is", root / "bin"
        self.root.mkdir()
        self.bin.mkdir()
        for name in (*TOOLS, tool):
            (self.bin / name).symlink_to(shutil.which(name))
        self.command("sleep", "exit 0")
        self.command("df", "echo; echo disk 9 0 90000000 0% /")

    def command(self, name, script):
        (self.bin / name).write_text(f"#!{shutil.which('bash')}\n{script}\n")
        (self.bin / name).chmod(0o755)

    def start(self, *parts, **variables):
        environment = {"PATH": str(self.bin), **variables}
        return subprocess.Popen([self.bin / "bash", SCRIPT, *parts], cwd=self.root, env=environment, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)

    def run(self, *parts, **variables):
        """(exit code, lines of stdout, stderr)."""
        process = self.start(*parts, **variables)
        out, err = process.communicate(timeout=60)
        return process.returncode, out.splitlines(), err

    def fails(self, *parts, **variables):
        """The one line of the error."""
        code, _, err = self.run(*parts, **variables)
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
        return err

    def files(self):
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file())


@pytest.fixture
def folder(tmp_path, tool):
    return Folder(tmp_path, tool)


@pytest.fixture
def with_curl(tmp_path):
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    return Folder(tmp_path, "curl")


def vit(site):
    site.files["/vit"] = CONTENT
    return {"VIT_TINY_URL": f"{site.url}/vit"}


VIT = "downloads/vit-tiny.safetensors"
PART = f"{VIT}.part"


def test_a_file_is_fetched_once_and_its_checksum_noted(site, folder):
    code, out, err = folder.run("vit-tiny", **vit(site))
    assert (code, err) == (0, "") and (folder.root / VIT).read_bytes() == CONTENT
    assert out == [f"To do: 103 kB in {folder.root}, where 92.2 GB are free",
                   f"{VIT}: no checksum of it is known; its SHA-256 is noted in downloads/checksums.txt and compared from now on",
                   f"{VIT}: fetched, 103 kB"]
    assert (folder.root / "downloads/checksums.txt").read_text() == f"{hashlib.sha256(CONTENT).hexdigest()}  {VIT}\n"
    asked = list(site.asked)
    assert folder.run("vit-tiny", **vit(site)) == (0, [f"{VIT} is there"], "") and site.asked == asked
    assert folder.files() == ["downloads/checksums.txt", VIT]


def test_a_transfer_that_breaks_off_goes_on_where_it_stopped(site, folder):
    site.cuts = [1000, 3000]
    assert folder.run("vit-tiny", **vit(site))[0] == 0
    assert site.gets() == [("/vit", None), ("/vit", "bytes=1000-"), ("/vit", "bytes=3000-")]
    assert (folder.root / VIT).read_bytes() == CONTENT


def test_a_server_that_cannot_go_on_begins_anew(site, folder):
    site.cuts, site.ranges = [1000], False
    assert folder.run("vit-tiny", **vit(site))[0] == 0 and (folder.root / VIT).read_bytes() == CONTENT


def test_a_killed_download_goes_on_with_the_next(site, folder):
    site.cuts, site.files["/vit"] = [5000], CONTENT
    site.stalls.set()
    process = folder.start("vit-tiny", **vit(site))
    deadline = time.monotonic() + 30
    while not ((folder.root / PART).exists() and (folder.root / PART).stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    site.stalls.clear()
    kept = (folder.root / PART).stat().st_size
    assert not (folder.root / VIT).exists() and 0 < kept <= 5000
    assert folder.run("vit-tiny", **vit(site))[0] == 0 and (folder.root / VIT).read_bytes() == CONTENT
    assert site.gets()[-1] == ("/vit", f"bytes={kept}-") and folder.files() == ["downloads/checksums.txt", VIT]


def test_half_of_a_file_that_has_changed_since_is_dropped(site, folder):
    site.cuts = [1000] + 3 * [0]
    assert "run this again to go on" in folder.fails("vit-tiny", **vit(site))
    site.etag, new = "2", CONTENT[::-1]
    vit(site)
    site.files["/vit"] = new
    assert folder.run("vit-tiny", VIT_TINY_URL=f"{site.url}/vit")[0] == 0 and (folder.root / VIT).read_bytes() == new


def test_a_server_that_stays_silent_is_given_up(site, folder):
    site.cuts = [1000] + 9 * [0]
    assert folder.fails("vit-tiny", **vit(site)) == (
        f"error: {site.url}/vit: the transfer stopped after 1 kB, HTTP status 206: run this again to go on\n")
    assert (folder.root / PART).read_bytes() == CONTENT[:1000] and len(site.gets()) == 4


def test_a_missing_file_and_a_missing_server_are_errors(site, folder):
    assert folder.fails("vit-tiny", VIT_TINY_URL=f"{site.url}/none") == (
        f"error: {site.url}/none is not to be had (HTTP status 404): set VIT_TINY_URL to a mirror\n")
    site.close()
    assert folder.fails("catr", CATR_URL=f"{site.url}/catr") == (
        f"error: {site.url}/catr does not answer: see to the network or the proxy, or set CATR_URL to a mirror\n")
    assert folder.files() == []


def test_a_server_that_does_not_tell_the_size(site, folder):
    site.heads = False
    assert folder.run("vit-tiny", **vit(site))[0] == 0 and (folder.root / VIT).read_bytes() == CONTENT


def test_redirections_are_followed(site, folder):
    variables = vit(site)
    site.redirects["/hub"] = variables["VIT_TINY_URL"]
    assert folder.run("vit-tiny", VIT_TINY_URL=f"{site.url}/hub")[0] == 0 and (folder.root / VIT).read_bytes() == CONTENT


def test_a_proxy_is_asked(site, folder):
    site.files["/vit"] = CONTENT
    assert folder.run("vit-tiny", VIT_TINY_URL="http://pets.example/vit", http_proxy=site.url)[0] == 0
    assert site.gets() == [("http://pets.example/vit", None)] and (folder.root / VIT).read_bytes() == CONTENT


def test_a_pinned_checksum_that_does_not_match_keeps_the_file_out(site, with_curl):
    site.files["/vocab"] = b"[PAD]\n"
    found, pinned = hashlib.sha256(b"[PAD]\n").hexdigest(), "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
    assert with_curl.fails("vocab", VOCAB_URL=f"{site.url}/vocab") == (
        f"error: {site.url}/vocab: its sha256 is {found}, not {pinned}, as pinned in hw_download.sh: it was removed\n")
    assert with_curl.files() == []
    assert with_curl.run("vocab", VOCAB_URL=f"{site.url}/vocab", VOCAB_SHA256=found)[0] == 0
    assert with_curl.files() == ["downloads/vocab.txt"]


def test_a_noted_checksum_is_compared_ever_after(site, with_curl):
    assert with_curl.run("vit-tiny", **vit(site))[0] == 0
    (with_curl.root / VIT).write_bytes(CONTENT[:-1])
    assert f"error: {VIT}: its sha256 is " in with_curl.fails("vit-tiny", **vit(site))
    (with_curl.root / VIT).unlink()
    site.files["/vit"] = CONTENT[::-1]
    error = with_curl.fails("vit-tiny", VIT_TINY_URL=f"{site.url}/vit")
    assert error.endswith("as noted in downloads/checksums.txt at its first download: it was removed\n")
    assert with_curl.files() == ["downloads/checksums.txt"]


def test_too_little_space_is_said_before_anything_is_fetched(site, with_curl):
    with_curl.command("df", "echo; echo disk 9 0 90 0% /")
    assert with_curl.fails("vit-tiny", **vit(site)) == (
        "error: that is too little space: free some, or fetch fewer parts\n")
    assert site.gets() == [] and with_curl.files() == []


def test_a_disk_that_becomes_full(site, with_curl):
    with_curl.command("df", "echo; if [ -e filled ]; then echo disk 9 9 0 100% /; else : > filled; echo disk 9 0 9000 0% /; fi")
    site.cuts = [1000] + 3 * [0]
    assert with_curl.fails("vit-tiny", **vit(site)) == (
        f"error: no space is left for {VIT}: make room, and run this again to go on\n")


def test_a_file_url(site, with_curl, tmp_path):
    (tmp_path / "a mirror").mkdir()
    (tmp_path / "a mirror" / "vit").write_bytes(CONTENT)
    assert with_curl.run("vit-tiny", VIT_TINY_URL=f"file://{tmp_path}/a%20mirror/vit")[0] == 0
    assert (with_curl.root / VIT).read_bytes() == CONTENT
    assert with_curl.fails("catr", CATR_URL=f"file://{tmp_path}/none").endswith("set CATR_URL to a mirror\n")


def test_a_trained_checkpoint_and_the_line_that_evaluates_it(site, with_curl):
    site.files["/best.pt"] = CONTENT
    variables = {"CHECKPOINT_URL": f"{site.url}/best.pt", "CHECKPOINT_SHA256": hashlib.sha256(CONTENT).hexdigest()}
    line = "Evaluate it: python p1_eval.py p1_data/val --checkpoint downloads/checkpoint.pt --expect 0.942"
    for _ in range(2):
        code, out, _ = with_curl.run("checkpoint", **variables, CHECKPOINT_EXPECT="0.942")
        assert code == 0 and out[-1] == line
    assert (with_curl.root / "downloads/checkpoint.pt").read_bytes() == CONTENT
    assert "set CHECKPOINT_URL and CHECKPOINT_SHA256" in with_curl.fails("checkpoint", CHECKPOINT_URL=variables["CHECKPOINT_URL"])


def test_unknown_parts_and_help_ask_nobody(site, with_curl):
    assert with_curl.fails("pets", "cats").startswith("error: cats is no part: choose among pets ")
    code, out, err = with_curl.run("--help")
    assert (code, err) == (0, "") and out[0].startswith("Fetch what the real runs need") and site.asked == []
    (with_curl.bin / "curl").unlink()
    assert with_curl.fails("catr") == "error: neither curl nor wget is installed: install one of them\n"


# Oxford-IIIT Pet -----------------------------------------------------------------------------------------------------


def archive(members):
    """The bytes of a .tar.gz of {name: content}; a content that is a str is the target of a link."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


IMAGES = {"images/Abyssinian_100.jpg": b"a100", "images/basset_hound_1.jpg": b"b1", "images/Abyssinian_2.jpg": b"a2",
          "images/Bengal_3.jpg": b"c3", "images/Abyssinian_100.mat": b"not wanted"}
ANNOTATIONS = {"annotations/trainval.txt": b"Abyssinian_100 1 1 1\nbasset_hound_1 2 2 1\n",
               "annotations/test.txt": b"Abyssinian_2 1 1 1\nBengal_3 3 1 2\n",
               "annotations/trimaps/Abyssinian_100.png": b"t100", "annotations/trimaps/Bengal_3.png": b"t3",
               "annotations/trimaps/._Bengal_3.png": b"not wanted"}


def pets(site, images=IMAGES, annotations=ANNOTATIONS):
    variables = {}
    for name, members in (("IMAGES", images), ("ANNOTATIONS", annotations)):
        site.files[f"/{name}"] = archive(members)
        variables[f"PETS_{name}_URL"] = f"{site.url}/{name}"
        variables[f"PETS_{name}_MD5"] = hashlib.md5(site.files[f"/{name}"]).hexdigest()
    return variables


def test_pets_in_the_layout_of_the_course(site, with_curl):
    (with_curl.root / "p1_data.part" / "train").mkdir(parents=True)  # of a run that was killed
    (with_curl.root / "p1_data.part" / "train" / "9_9.jpg").touch()
    code, out, err = with_curl.run("pets", **pets(site))
    assert (code, err) == (0, "") and out[-1] == "p1_data: 2 photos in train, 2 in val, 3 classes"
    assert {name: (with_curl.root / name).read_bytes() for name in with_curl.files()} == {
        "p1_data/train/0_0.jpg": b"a100", "p1_data/train/1_1.jpg": b"b1", "p1_data/val/0_2.jpg": b"a2",
        "p1_data/val/2_3.jpg": b"c3", "p1_data/masks/train/0_0.png": b"t100", "p1_data/masks/val/2_3.png": b"t3",
        "p1_data/classes.txt": b"Abyssinian\nbasset_hound\nBengal\n"}
    assert with_curl.run("pets", **pets(site)) == (0, ["p1_data is there"], "")


@pytest.mark.parametrize(("images", "annotations", "error"), [
    ({"../outside": b"", "/tmp/../outside": b"", **IMAGES}, ANNOTATIONS, None),
    (IMAGES, {"../outside": b"", **ANNOTATIONS}, None),
    ({**IMAGES, "images/Bengal_3.jpg": "../../../outside"}, ANNOTATIONS, "hold links"),
    ({"images": "../..", **IMAGES}, ANNOTATIONS, None),
    (IMAGES, {**ANNOTATIONS, "annotations/test.txt": b"../../outside 1 1 1\n"}, "its lists are not those"),
    (IMAGES, {**ANNOTATIONS, "annotations/trimaps/../../../outside": b""}, "cannot be unpacked"),
    ({"images/Bengal_3.jpg": b"c3"}, ANNOTATIONS, "cannot be unpacked"),
])
def test_archives_cannot_write_outside_their_folder(site, with_curl, images, annotations, error):
    before = set(with_curl.root.parent.iterdir())
    if error:
        assert error in with_curl.fails("pets", **pets(site, images, annotations))
        assert not (with_curl.root / "p1_data").exists()
    else:
        assert with_curl.run("pets", **pets(site, images, annotations))[0] == 0
    assert set(with_curl.root.parent.iterdir()) == before and not list(with_curl.root.rglob("outside"))
