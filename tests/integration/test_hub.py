"""Pretrained weights from the hub, played by a server on this machine."""

import hashlib
import http.server
import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch

REPOSITORY = Path(__file__).parents[2]
WEIGHTS = "/timm/test_vit.r160_in1k/resolve/main/model.safetensors"
PICKLED = "/timm/test_vit2.r160_in1k/resolve/main/pytorch_model.bin"
SILENT = "/timm/test_vit3.r160_in1k/resolve/main/model.safetensors"


class Hub(http.server.BaseHTTPRequestHandler):
    """Has two files, answers nothing where it is asked for `SILENT`, and 404 otherwise."""

    contents = {}
    over = threading.Event()

    def do_HEAD(self):
        if self.path == SILENT:
            self.over.wait(30)
            return False
        if self.path not in self.contents:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return False
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.contents[self.path])))
        self.send_header("ETag", f'"{hashlib.sha256(self.contents[self.path]).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        return True

    def do_GET(self):
        if self.do_HEAD():
            self.wfile.write(self.contents[self.path])

    def log_message(self, *args):
        pass


# The hub's address is read at import, so that a process of its own creates the models that are asked for.
CREATE = """
    import sys
    from common.errors import BadInput
    from models import vit
    print("ready", flush=True)
    for arch in sys.stdin:
        try:
            model, message = vit.create(arch.strip(), 3)
            print(message, "|", model.patch_embed.proj.bias.sum().item(), flush=True)
        except BadInput as error:
            print(f"error: {error}", flush=True)
"""


@pytest.fixture
def hub(tmp_path):
    """The server, the sum of one of its tensors, and a function that creates a model and says how."""
    model = timm.create_model("test_vit")
    torch.nn.init.uniform_(model.patch_embed.proj.bias)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "hub.safetensors")
    torch.save(timm.create_model("test_vit2").state_dict(), tmp_path / "hub.bin")
    Hub.contents = {path: (tmp_path / name).read_bytes() for path, name in ((WEIGHTS, "hub.safetensors"),
                                                                            (PICKLED, "hub.bin"))}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
                   "NO_PROXY": "127.0.0.1",
                   "HF_HOME": str(tmp_path / "cache"), "HF_HUB_ETAG_TIMEOUT": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(CREATE)], stdin=subprocess.PIPE, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=REPOSITORY,
                          env=environment) as process:
        assert process.stdout.readline() == "ready\n"

        def create(arch):
            process.stdin.write(f"{arch}\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        yield server, model.patch_embed.proj.bias.sum().item(), create
        process.stdin.close()
    Hub.over.set()
    server.server_close()


def test_weights_come_from_the_hub_once_and_without_it_the_error_is_one_line(hub):
    server, checksum, create = hub
    message, _, value = create("test_vit.r160_in1k").rpartition(" | ")
    assert message == "the head of model.safetensors (1000 classes) is replaced by a new one (3 classes)"
    assert float(value) == checksum
    words = create("vit_tiny_patch16_224.augreg_in21k")
    assert words == ("error: timm/vit_tiny_patch16_224.augreg_in21k on the hub holds none of "
                     "model.safetensors, pytorch_model.bin: pass a file with --weights")
    message = create("test_vit2.r160_in1k")
    assert message.startswith("the head of pytorch_model.bin (1000 classes) is replaced")
    started = time.monotonic()
    words = create("test_vit3.r160_in1k")  # a hub that takes the connection and does not answer
    assert words.startswith("error: the weights timm/test_vit3.r160_in1k cannot be fetched from the hub (")
    assert words.endswith(": get model.safetensors elsewhere, pass --weights FILE")
    server.shutdown()
    server.socket.close()
    assert create("test_vit.r160_in1k").endswith(f"| {checksum}"), "from the cache"
    words = create("test_vit3.r160_in1k")  # a hub that refuses the connection
    assert words.startswith("error: the weights timm/test_vit3.r160_in1k cannot be fetched")
    assert time.monotonic() - started < 10, "each is asked once, for as long as HF_HUB_ETAG_TIMEOUT says"
