"""The device that is picked, and what is said where torch cannot use the GPU; what torch says is imitated."""

import pytest
import torch
import torch.distributed as dist

from common.errors import BadInput
from engine import device, distributed

TOO_OLD = ("The NVIDIA driver on your system is too old (found version {}). Please update your GPU driver by "
           "downloading and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx")


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Set up a machine: its card, or what torch.cuda.init() raises, and whether it has a file in /dev."""
    def set_up(capability=None, error=None, kernels=("sm_75", "sm_80", "sm_90", "sm_120"), file=True, gpus=1):
        def init():
            if error:
                raise error

        monkeypatch.setattr(torch.cuda, "init", init)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: not error)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(kernels))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(device, "GPU_FILES", "null" if file else "no such file")

    return set_up


@pytest.mark.parametrize("capability, kernels", [
    ((7, 5), ("sm_75", "sm_80")), ((8, 9), ("sm_75", "sm_80")), ((13, 0), ("sm_75", "compute_120")),
    ((9, 4), ("gfx942",))])
def test_a_card_that_torch_has_kernels_for_is_picked_in_silence(machine, capsys, capability, kernels):
    machine(capability, kernels=kernels)
    for name in ("auto", "cuda"):
        assert device.pick_device(name) == torch.device("cuda")
    assert device.pick_device("cpu") == torch.device("cpu") and capsys.readouterr().err == ""


NO_GPU = RuntimeError("Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU")
CASES = [
    ({"capability": (7, 0)},
     f"Tesla V100 has compute capability 7.0, and this torch has kernels for 7.5 to 12.0: {device.CUDA_12}"),
    ({"capability": (13, 0)}, "kernels for 7.5 to 12.0: install a newer torch"),
    ({"capability": (7, 4)}, device.CUDA_12),
    ({"error": RuntimeError(TOO_OLD.format(12040))},
     f"the NVIDIA driver is of CUDA 12.4, and this torch is of 13.0: update the driver, or {device.CUDA_12}"),
    ({"error": RuntimeError(TOO_OLD.format(11080)), "file": False}, "is of 13.0: update the driver"),
    ({"error": AssertionError("Torch not compiled with CUDA enabled")},
     "this torch was built without CUDA: pip install -r requirements.txt in a new environment"),
    ({"error": RuntimeError("CUDA unknown error - maybe a wrongly set up environment. More")},
     "the GPU or its driver does not work (CUDA unknown error - maybe a wrongly set up environment): see "
     "what nvidia-smi says"),
    ({"error": NO_GPU}, "does not work (Found no NVIDIA driver on your system): see what nvidia-smi says"),
]


@pytest.mark.parametrize("setting, message", CASES)
def test_auto_says_why_it_goes_on_without_the_gpu_and_cuda_is_refused(machine, capsys, setting, message):
    machine(**setting)
    assert device.pick_device("auto") == torch.device("cpu")
    said = capsys.readouterr().err
    assert said.startswith("note: ") and said.endswith(f"{message}. Going on without the GPU\n")
    assert said.count("\n") == 1
    with pytest.raises(BadInput) as error:
        device.pick_device("cuda")
    assert f"{message}; or pass --device cpu" in str(error.value)


@pytest.mark.parametrize("error, file", [
    (NO_GPU, False), (AssertionError("Torch not compiled with CUDA enabled"), False),
    (RuntimeError("No CUDA GPUs are available"), True)])
def test_where_there_is_no_gpu_or_it_is_hidden_auto_is_silent(machine, capsys, error, file):
    machine(error=error, file=file)
    assert device.pick_device("auto") == torch.device("cpu") and capsys.readouterr().err == ""
    with pytest.raises(BadInput, match="--device cuda: torch finds no GPU here; or pass --device cpu"):
        device.pick_device("cuda")


@pytest.fixture
def ranks(monkeypatch):
    def set_up(number, count, here=None):
        here = {"LOCAL_WORLD_SIZE": str(here)} if here else {}
        for name, value in {"RANK": "0", "WORLD_SIZE": str(count), "LOCAL_RANK": str(number), **here}.items():
            monkeypatch.setenv(name, value)

    return set_up


@pytest.mark.parametrize("number, here, gpus, message", [
    (0, 4, 2, "4 processes share this machine, and torch sees 2 of its GPUs"),
    (3, 4, 1, "pass --nproc-per-node 1 to torchrun"), (3, None, 3, "4 processes share this machine")])
def test_more_ranks_than_gpus_are_refused(machine, ranks, number, here, gpus, message):
    machine((8, 0), gpus=gpus)
    ranks(number, 4, here)
    with pytest.raises(BadInput, match=message):
        distributed.local_device(torch.device("cuda"))


def test_each_rank_has_its_own_gpu_and_nccl_is_told_which(machine, ranks, monkeypatch):
    machine((8, 0), gpus=2)
    ranks(1, 4, 2)
    calls = []
    monkeypatch.setattr(torch.cuda, "set_device", calls.append)
    monkeypatch.setattr(dist, "rendezvous", lambda address: iter([(dist.HashStore(), 1, 4)]))
    monkeypatch.setattr(dist, "init_process_group", lambda rank, world_size, store, **options: calls.append(
        (rank, world_size, options)))
    own = distributed.local_device(torch.device("cuda"))
    assert own == torch.device("cuda", 1)
    distributed.init_process_group(own)
    distributed.init_process_group(torch.device("cpu"))
    assert calls == [own, (1, 4, {"backend": "cpu:gloo,cuda:nccl", "device_id": own}),
                     (1, 4, {"backend": "gloo"})]


@pytest.mark.parametrize("capability, fastest, default, slow", [
    ((6, 1), "fp32", "fp32", ["bf16"]), ((7, 0), "fp16", "fp32", ["fp32", "bf16"]),
    ((7, 5), "fp16", "fp32", ["fp32", "bf16"]), ((8, 0), "bf16", "bf16", ["fp32"]),
    ((9, 0), "bf16", "bf16", ["fp32"])])
def test_auto_is_bf16_on_a_card_of_capability_8(machine, capability, fastest, default, slow):
    machine(capability)
    gpu = torch.device("cuda")
    assert (device.fastest_precision(gpu), device.default_precision(gpu)) == (fastest, default)
    assert [precision for precision in device.PRECISIONS if device.is_slow(precision, gpu)] == slow


@pytest.mark.parametrize("instructions, default, slow", [
    ((), "fp32", ["bf16", "fp16"]), (("_is_avx512_supported",), "fp32", ["bf16", "fp16"]),
    (("_is_avx512_supported", "_is_avx512_bf16_supported"), "bf16", ["fp16"]),
    (("_is_amx_tile_supported",), "bf16", ["fp16"])])
def test_auto_is_bf16_on_a_processor_with_instructions_for_it(monkeypatch, instructions, default, slow):
    for name in ("_is_avx512_supported", "_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name in instructions)
    cpu = torch.device("cpu")
    assert device.default_precision(cpu) == default
    assert [precision for precision in device.PRECISIONS if device.is_slow(precision, cpu)] == slow
    for name in device.BF16_INSTRUCTIONS:  # not in every version of torch
        monkeypatch.delattr(torch.cpu, name)
    assert device.default_precision(cpu) == "fp32"
