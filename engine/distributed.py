"""Several processes that train one model together, as torchrun starts them. For a process alone all of this is free."""

import contextlib
import os
import time
import warnings

import torch
import torch.distributed as dist

from common.errors import BadInput, TrainingStopped
from common.processes import is_lost_process


def world_size():
    """The number of processes."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank():
    """The number of this process, from 0. Process 0 alone writes and reports."""
    return int(os.environ.get("RANK", 0))


def own_device(device):
    """This process's own GPU where `device` is one: they are numbered on each machine."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if device.type == "cuda" else device


def connect(device):
    """Connect the processes: by NCCL between GPUs, by gloo otherwise."""
    if world_size() > 1:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def disconnect():
    """The opposite, at the end of the work. Not after an error: it waits for the others, as long as they live."""
    if world_size() > 1:
        with contextlib.suppress(ProcessLost), noticing_lost_processes():
            dist.barrier()
        # gloo's threads let go of the last tensors under a lock, for which they need the GIL; who destroys the group
        # before that, holding the GIL, waits for the lock for ever (github.com/pytorch/pytorch/issues/56297)
        time.sleep(0.05)
        dist.destroy_process_group()


def parallel(model):
    """The model, in DistributedDataParallel where there are several processes: backward averages their gradients."""
    if world_size() == 1:
        return model
    # of the class token, whose gradient comes as a strided view: it costs one small copy
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    return torch.nn.parallel.DistributedDataParallel(model)


def averaging_last(model, batches):
    """The batches of a pass, one after the other; only the backward of the last one averages the gradients."""
    *others, last = batches
    for batch in others:
        with model.no_sync() if world_size() > 1 else contextlib.nullcontext():
            yield batch
    yield last


def summed(tensor):
    """The sum of the tensors of all processes."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


class ProcessLost(TrainingStopped):
    """Another process has ended while this one waited for it."""


@contextlib.contextmanager
def noticing_lost_processes():
    """Raise ProcessLost where a connection to another process breaks."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        raise ProcessLost("another process of this run has failed") from error


def check_agreement(value):
    """Raise BadInput unless all processes call this with the same value, from what they read from the disk."""
    if any(other != value for other in gathered(value)):
        raise BadInput("the processes do not read the same images or the same last.pt: put --data and --output on "
                       "storage that all of them share")


def largest(values, device):
    """The largest of each of some whole numbers over all processes, as a list."""
    if world_size() == 1:
        return list(values)
    tensor = torch.tensor(values, device=device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.tolist()


def share(items):
    """This process's share of a list that all have: every `world_size()`-th item."""
    return items[rank()::world_size()]


def joined(own):
    """The list whose shares the processes hold, in every process."""
    shares = gathered(own)
    items = [None] * sum(map(len, shares))
    for process, part in enumerate(shares):
        items[process::world_size()] = part
    return items


def gathered(value):
    """The values of all processes, as a list in the order of their ranks."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def one_after_the_other(work):
    """Call `work` in process 0, then in the others, which find done what the first one did; returns its value."""
    value = work() if rank() == 0 else None
    gathered(None)
    return value if rank() == 0 else work()
