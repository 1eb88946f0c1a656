"""What differs where there is a GPU, as far as it shows without one. tests/gpu needs one."""

import collections
import dataclasses
from types import SimpleNamespace

import pytest
import torch
import torchvision
from torch._subclasses import FakeTensorMode

from engine import checkpointing, device, distributed
from models import catr


def test_fp32_is_not_tf32_once_a_device_is_chosen():
    switches = torch.backends.cudnn, torch.backends.cuda.matmul
    for switch in switches:
        switch.allow_tf32 = True
    device.pick_device("auto")
    assert not any(switch.allow_tf32 for switch in switches)


def test_a_checkpoint_is_moved_to_the_cpu_with_all_that_is_in_it(tmp_path, monkeypatch):
    weights = torch.nn.Linear(2, 2).state_dict()
    with FakeTensorMode():
        on_gpu = torch.empty(3, device="cuda")
        moved = device.to_cpu({"a": [on_gpu, (on_gpu, 1.5)], "b": {0: on_gpu}, "c": None,
                               "state_dict": weights})
    assert all(value.device.type == "cpu" for value in (moved["a"][0], moved["a"][1][0], moved["b"][0]))
    assert type(moved["a"][1]) is tuple and moved["a"][1][1] == 1.5 and moved["c"] is None
    assert on_gpu.device.type == "cuda" and type(moved["state_dict"]) is collections.OrderedDict
    assert moved["state_dict"]._metadata == weights._metadata and moved["state_dict"] is not weights
    assert moved["state_dict"]["weight"] is weights["weight"]

    monkeypatch.setattr(checkpointing, "to_cpu", lambda content: {**content, "moved": True})
    checkpointing.save_checkpoint({"epoch": 3}, tmp_path / "best.pt")
    assert torch.load(tmp_path / "best.pt", weights_only=True) == {"epoch": 3, "moved": True}


@pytest.mark.parametrize("smi, driver", [("580.159\n580.159\n", "580.159"), ("", None), (None, None)])
def test_a_gpu_is_described_in_the_configuration(monkeypatch, smi, driver):
    def run(command, **options):
        if smi is None:
            raise FileNotFoundError(command[0])
        return SimpleNamespace(stdout=smi)

    monkeypatch.setattr(device.subprocess, "run", run)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert device.describe_gpu(torch.device("cuda", 1)) == {
        "gpu": {"name": "NVIDIA H100", "capability": "9.0", "driver": driver}}
    assert device.describe_gpu(torch.device("cpu")) == {}


def test_numbers_on_the_cpu_go_by_gloo_between_gpus(monkeypatch):
    calls = []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(distributed.dist, "rendezvous", lambda method: iter([(None, 0, 2)]))
    monkeypatch.setattr(distributed.dist, "PrefixStore", lambda prefix, store: store)
    monkeypatch.setattr(distributed.dist, "init_process_group",
                        lambda backend, device_id=None, **options: calls.append((backend, device_id)))
    devices = torch.device("cuda", 1), torch.device("cpu")
    for each in devices:
        distributed.init_process_group(each)
    assert calls == [("cpu:gloo,cuda:nccl", devices[0]), ("gloo", None)]


@pytest.mark.parametrize("layer, broadcast", [(torch.nn.BatchNorm1d, True), (catr.FrozenBatchNorm2d, False),
                                              (torch.nn.LayerNorm, False)])
def test_only_statistics_that_change_are_broadcast_each_step(monkeypatch, layer, broadcast):
    options = {}
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel",
                        lambda model, **more: options.update(more) or model)
    distributed.data_parallel(torch.nn.Sequential(torch.nn.Linear(3, 3), layer(3)))
    assert options["broadcast_buffers"] is broadcast


def test_frozen_batch_norm_is_torchvisions_and_keeps_the_number_format():
    torch.manual_seed(0)
    ours, theirs = catr.FrozenBatchNorm2d(5), torchvision.ops.FrozenBatchNorm2d(5)
    for buffer in ours.buffers():
        buffer.uniform_(0.5, 2)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 4, 4)
    assert torch.equal(ours(x), theirs(x))
    assert ours(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(ours(x.bfloat16()).float(), theirs(x), rtol=0.03, atol=0.03)


def test_the_captioner_does_without_cudnns_attention():
    torch.backends.cuda.enable_cudnn_sdp(True)
    config = dataclasses.replace(catr.small_config(20), pretrained_backbone=True)
    model = catr.CATR(config)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    norms = [module for module in model.modules() if isinstance(module, torchvision.ops.FrozenBatchNorm2d)]
    assert len(norms) > 10 and all(isinstance(norm, catr.FrozenBatchNorm2d) for norm in norms)
