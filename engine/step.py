"""One optimizer step: plain or SAM, in mixed precision, over several batches and several ranks."""

import math

import torch

from engine import distributed
from engine.device import autocast
from sam import SAM

OPTIMIZERS = {"adam": (torch.optim.Adam, {}), "adamw": (torch.optim.AdamW, {}),
              "sgd": (torch.optim.SGD, {"momentum": 0.9})}
FUSED = ("adam", "adamw")  # on a GPU one kernel for all that a step changes


class _NonFiniteLoss(ArithmeticError):
    pass


def build_optimizer(args, parameters, model):
    """The optimizer that `engine.flags` name, with SAM around it if they say so.

    `parameters` are parameters or groups of them, `model` is what the passes run:
    `distributed.data_parallel`'s.
    """
    base_optimizer, options = OPTIMIZERS[args.optimizer]
    if args.optimizer in FUSED and next(model.parameters()).is_cuda:
        options = {**options, "fused": True}
    if not args.sam:
        return base_optimizer(parameters, lr=args.lr, **options)
    return SAM(parameters, base_optimizer, rho=args.rho, adaptive=args.adaptive, model=model,
               sync_perturbation=args.sync_perturbation, lr=args.lr, **options)


class OptimizerStep:
    """Steps along the gradient of a mean loss.

    Args:
        model: what `distributed.data_parallel` returned.
        optimizer: a torch optimizer or `sam.SAM`, of its parameters.
        scaler: a `torch.amp.GradScaler`, enabled for fp16.
        loss: (model, batch) -> (loss, correct): the sums over the images of a batch, tensors.
        device, precision: as for `engine.device.autocast`.
    """

    def __init__(self, model, optimizer, scaler, loss, device, precision):
        self.model, self.optimizer, self.scaler, self.loss = model, optimizer, scaler, loss
        self.device, self.precision = device, precision
        # two numbers have the same sum in either order
        self._order_matters = distributed.world_size() > 2

    def __call__(self, batches, size):
        """Take one step. Returns (loss, correct), sums over the images of all ranks before it. Collective.

        `batches` are those of this rank, whose gradients are accumulated; `size` counts their images on all
        ranks. Where the loss is not finite, no step is taken, and it is returned as NaN. In fp16 the scaler
        also skips a step whose gradient overflows.
        """
        if self._order_matters:
            self._settle_order(batches[0])
        number, sums = 1 + isinstance(self.optimizer, SAM), []  # of passes; (loss, correct) of each

        def closure():
            sums.append(self._forward_backward(batches, size))
            if len(sums) == number:
                # before the weights change, and once a step: here a GPU is waited for
                sums[:] = distributed.all_reduce_sum(torch.stack(sums)).tolist()
                # in fp16 an overflow of the first gradient makes the perturbation NaN: the scaler skips
                checked = sums[:1] if self.scaler.is_enabled() else sums
                if not all(math.isfinite(loss) for loss, _ in checked):
                    raise _NonFiniteLoss

        try:
            if number == 2:
                self.optimizer.step(closure, self.scaler)
            else:
                closure()
                self.scaler.step(self.optimizer)
        except _NonFiniteLoss:
            return math.nan, 0.0
        self.scaler.update()
        return sums[0]

    def _settle_order(self, batch):
        """A synchronised backward that leaves nothing behind. Collective.

        DistributedDataParallel sums the gradients of its first one in another order than those of all later
        ones: with this as the first, a run that goes on from a saved state sums as one left alone does.
        """
        self._order_matters = False
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            with autocast(self.device, self.precision):
                loss, _ = self.loss(self.model, batch)
            loss.backward()
        self.optimizer.zero_grad()
        for buffer, value in buffers:
            buffer.copy_(value)

    def _forward_backward(self, batches, size):
        """Leave the gradient of loss / size, averaged over ranks; this rank's (loss, correct), a tensor."""
        self.optimizer.zero_grad()
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch in distributed.no_sync_until_last(self.model, batches):
            with autocast(self.device, self.precision):
                loss, correct = self.loss(self.model, batch)
            self.scaler.scale(loss * distributed.world_size() / size).backward()
            sums += torch.stack([loss.detach(), correct])
        return sums
