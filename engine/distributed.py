"""Several ranks that train one model together, as torchrun starts them. For one alone all of this is free."""

import contextlib
import os
import time
import warnings

import torch
import torch.distributed as dist

from common.errors import BadInput, TrainingStopped
from common.machine import attempt, is_lost_rank, last_line, rank, ranks_here, world_size


def local_device(device):
    """This rank's own GPU where `device` is one: they are numbered on each machine.

    Raises BadInput where there are fewer of them than ranks.
    """
    if device.type != "cuda" or world_size() == 1:
        return device
    number = int(os.environ.get("LOCAL_RANK", 0))
    ranks, gpus = max(ranks_here(), number + 1), torch.cuda.device_count()
    if ranks > gpus:
        raise BadInput(f"{ranks} processes share this machine, and torch sees {gpus} of its GPUs (of MIG "
                       f"slices, one): pass --nproc-per-node {gpus} to torchrun")
    return torch.device("cuda", number)


def init_process_group(device):
    """Connect the ranks: by NCCL for tensors on GPUs, by gloo otherwise. Collective."""
    if world_size() > 1:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        try:
            store, number, size = next(dist.rendezvous("env://"))
        except ValueError as error:  # a variable is missing
            raise BadInput("RANK and WORLD_SIZE are set, but not MASTER_ADDR and MASTER_PORT: start with "
                           "torchrun, or unset RANK") from error
        options = {"backend": "gloo"}
        if device.type == "cuda":
            # What is on the CPU goes by gloo, too, for which no GPU is waited for. With its device NCCL
            # connects now, and not in the middle of the work.
            options = {"backend": "cpu:gloo,cuda:nccl", "device_id": device}
        dist.init_process_group(rank=number, world_size=size,
                                store=dist.PrefixStore(f"attempt {attempt()}", store), **options)


def destroy_process_group():
    """The opposite, at the end of the work; not after an error, for it waits for the other ranks. Collective.
    """
    if world_size() > 1:
        with contextlib.suppress(RankLost), detect_lost_ranks():
            dist.barrier()
        # gloo's threads let go of the last tensors under a lock, for which they need the GIL; who destroys
        # the group before that, holding the GIL, waits for the lock for ever
        # (github.com/pytorch/pytorch/issues/56297)
        time.sleep(0.05)
        dist.destroy_process_group()


def data_parallel(model):
    """The model, in DistributedDataParallel where there are several ranks: backward averages their gradients.
    """
    if world_size() == 1:
        return model
    # of the class token, whose gradient comes as a strided view: it costs one small copy
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    # other buffers than batch norm's are alike from the start on: they need no broadcast a step
    changing = any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in model.modules())
    return torch.nn.parallel.DistributedDataParallel(model, broadcast_buffers=changing)


def no_sync_until_last(model, batches):
    """The batches of a pass, one after the other; only the backward of the last one averages the gradients.
    """
    *others, last = batches
    for batch in others:
        with model.no_sync() if world_size() > 1 else contextlib.nullcontext():
            yield batch
    yield last


class RankLost(TrainingStopped):
    """Another rank has ended while this one waited for it."""


@contextlib.contextmanager
def detect_lost_ranks():
    """Raise RankLost where a connection to another rank breaks."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost_rank(error):
            raise
        raise RankLost("another process of this run has failed", [last_line(error)]) from error


def check_agreement(value):
    """Raise BadInput unless all ranks read the same value from the disk. Collective."""
    if any(other != value for other in all_gather(value)):
        raise BadInput("the processes do not read the same images or the same last.pt: put --data and "
                       "--output on storage that all of them share")


def barrier():
    """Wait for all ranks. Collective."""
    if world_size() > 1:
        dist.barrier()


def all_reduce_sum(tensor):
    """The sum of the tensors of all ranks. Collective."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def all_reduce_max(values):
    """The largest of each of some whole numbers over all ranks, as a list. Collective."""
    if world_size() == 1:
        return list(values)
    tensor = torch.tensor(values)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.tolist()


def all_gather(value):
    """The values of all ranks, as a list in their order. Collective."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def main_process_only(work):
    """Call `work` on rank 0. What it raises as BadInput or OSError is raised on all ranks. Collective."""
    error = None
    if rank() == 0:
        try:
            work()
        except (BadInput, OSError) as caught:
            error = caught
    if error := all_gather(error)[0]:
        raise error


def shard(items):
    """This rank's shard of a list that all ranks have: every `world_size()`-th item."""
    return items[rank()::world_size()]


def gather_shards(local_items):
    """The list whose shards the ranks hold, on every rank. Collective."""
    shards = all_gather(local_items)
    items = [None] * sum(map(len, shards))
    for number, part in enumerate(shards):
        items[number::world_size()] = part
    return items


def main_process_first(work):
    """Call `work` on rank 0, then on the others, which find done what it did; returns its value. Collective.
    """
    value = work() if rank() == 0 else None
    barrier()
    return value if rank() == 0 else work()
