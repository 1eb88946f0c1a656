"""Sharpness-aware minimisation around any torch optimizer. One file that needs torch alone: copy it.

    optimizer = SAM(model.parameters(), torch.optim.Adam, lr=1e-4, rho=0.05, model=model)
    for images, targets in loader:
        def closure():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), targets)
            loss.backward()
            return loss
        optimizer.step(closure)  # calls it twice

SAM (Foret et al. 2020, arXiv:2010.01412, eq. 2) perturbs the weights w to w + eps and descends from w along
the gradient there; g is the gradient at w, and the norm is over all parameters together:

    eps = rho * g / ||g||

ASAM (Kwon et al. 2021, arXiv:2102.11600, eq. 9) measures the perturbation in units of each weight. Here T =
|w| for every parameter, biases too, and there is no small constant in it:

    eps = rho * T^2 g / ||T g||

Both passes draw the same random numbers; buffers such as BatchNorm's statistics follow the first pass alone.

**The passes written out**, in fp16 with a scaler, and with clipping, of the second gradient alone:

    def scaled_loss():
        with torch.autocast("cuda", torch.float16):
            return scaler.scale(F.cross_entropy(model(images), targets))

    with optimizer.first_pass():
        scaled_loss().backward()
    optimizer.first_step(zero_grad=True)
    with optimizer.second_pass():
        scaled_loss().backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)  # second_step(), unless a gradient of either pass is inf or NaN
    scaler.update()
    optimizer.zero_grad()

Without a scaler, `optimizer.second_step(zero_grad=True)` stands for all that follows the clipping; only a
scaler skips what is not finite. The perturbation does not depend on the scale of the loss.

**Several micro-batches a step**, under DistributedDataParallel too, with `SAM(..., model=ddp)`. A backward
pass averages the gradients of all ranks unless `no_sync` is held; only that of the last micro-batch should:

    def closure():
        optimizer.zero_grad()
        for i, (images, targets) in enumerate(batches):
            with ddp.no_sync() if i + 1 < len(batches) else contextlib.nullcontext():
                (F.cross_entropy(ddp(images), targets) / len(batches)).backward()

In the first pass SAM itself holds `no_sync`: each rank perturbs along its own gradient, as in the paper, or
with `sync_perturbation=True` along the mean one. All of them descend along the same gradient.
"""

import contextlib

import torch


class SAM(torch.optim.Optimizer):
    """An optimizer that steps as `base_optimizer(params, **base_kwargs)` along the gradient at w + eps.

    Its parameter groups and its state are the base optimizer's, for learning-rate schedulers and
    `state_dict()`. Only between `first_step` and the end of the second pass does a second copy of the weights
    exist: the parameters point to it, while w rests in its own storage. A copy of (model, optimizer) takes
    the same steps as they do; with a DistributedDataParallel `model`, copying raises TypeError.

    Args:
        params: parameters, or groups of them.
        base_optimizer: class of an optimizer whose `step()` needs no closure.
        rho: norm of the perturbation, at least 0; 0 is the base optimizer. May be set by group.
        adaptive: ASAM instead of SAM. May be set by group.
        model: the module, for buffers that change in training (BatchNorm) and for DistributedDataParallel.
            Sharded models (FSDP) are not supported: the norm would be that of a shard.
        sync_perturbation: with a DistributedDataParallel `model`, perturb along the mean gradient of all.
    """

    def __init__(self, params, base_optimizer, rho=0.05, adaptive=False, model=None, sync_perturbation=False,
                 **base_kwargs):
        if isinstance(base_optimizer, torch.optim.Optimizer):
            raise TypeError("SAM builds its optimizer: pass the class, SAM(params, torch.optim.Adam, lr=...)")
        super().__init__(params, {"rho": rho, "adaptive": adaptive, **base_kwargs})
        self.base_optimizer = base_optimizer(self.param_groups, **base_kwargs)
        self.defaults = {**self.base_optimizer.defaults, **self.defaults}
        self.model, self.sync_perturbation = model, sync_perturbation
        self._share()
        self._before = None  # the random streams and buffers with which the first pass began
        self._perturbed = []  # (parameter, w) for all that first_step moved
        self._norm = None  # of the gradient that first_step perturbed along
        self._may_descend = False  # a first_step, and no descent since

    def _share(self):
        self.param_groups, self.state = self.base_optimizer.param_groups, self.base_optimizer.state

    @contextlib.contextmanager
    def first_pass(self):
        """A context around the passes at w: remembers the random streams and buffers for `second_pass`."""
        self._before = self._random_streams(), self._buffers()
        local = hasattr(self.model, "no_sync") and not self.sync_perturbation
        with self.model.no_sync() if local else contextlib.nullcontext():
            yield

    @contextlib.contextmanager
    def second_pass(self):
        """A context around the passes at w + eps. Raises RuntimeError without a `first_pass`.

        They begin with the random streams and the buffers with which `first_pass` began. In the end, after an
        exception too, both are as the first pass left them, and the weights are w.
        """
        if self._before is None:
            raise RuntimeError("second_pass() repeats first_pass(): put that one around the first pass")
        after = self._random_streams(), self._buffers() if self._before[1] else {}
        try:
            self._put_back(*self._before)
            yield
        finally:
            self._before = None
            self.restore()
            self._put_back(*after)

    @torch.no_grad()
    def first_step(self, zero_grad=False):
        """Perturb w to w + eps, with eps from the gradients that the first pass left.

        Parameters without one stay, and all where each is zero; if one is inf or NaN, so is the second
        gradient, for a scaler to skip the step. Raises ValueError for sparse gradients.
        """
        self.restore()
        self._may_descend = True
        parts = []  # (group, parameters, their gradients or T g)
        for group in self.param_groups:
            for parameters in _alike(p for p in group["params"] if p.grad is not None):
                along = [p.grad for p in parameters]
                if any(gradient.is_sparse for gradient in along):
                    raise ValueError("SAM takes no sparse gradients: build nn.Embedding with sparse=False")
                if group["adaptive"]:
                    along = torch._foreach_mul(parameters, along)  # T g; the next product undoes its signs
                parts.append((group, parameters, along))
        if parts:
            norms = [_norm(along) for _, _, along in parts]
            self._norm = torch.linalg.vector_norm(torch.stack([norm.to(norms[0]) for norm in norms]))
            self._norm += 0 * self._norm  # inf becomes NaN, and then all of w + eps
        for group, parameters, along in parts:
            self._perturb(group, parameters, along)
        torch.clear_autocast_cache()  # it may hold casts of w, where one autocast encloses both passes
        if zero_grad:
            self.zero_grad()

    def _perturb(self, group, parameters, along):
        if group["rho"] == 0:
            return
        rho = -group["rho"] if group.get("maximize") else group["rho"]
        scale = torch.where(self._norm == 0, 0.0, rho / self._norm).to(parameters[0].device)
        if group["adaptive"]:
            perturbed = along  # ours to overwrite, unlike a gradient
            torch._foreach_mul_(perturbed, parameters)
            torch._foreach_mul_(perturbed, scale)
        else:
            perturbed = torch._foreach_mul(along, scale)
        torch._foreach_add_(perturbed, parameters)
        for parameter, value in zip(parameters, perturbed):
            self._perturbed.append((parameter, parameter.data))
            parameter.data = value

    @torch.no_grad()
    def restore(self):
        """Go back to w, exactly and in its own storage, if the parameters are elsewhere."""
        if not self._perturbed:
            return
        for parameter, weights in self._perturbed:
            parameter.data = weights
        torch.clear_autocast_cache()
        gradient = next((p.grad for p, _ in self._perturbed if p.grad is not None), None)
        if gradient is not None:
            # by 1, or NaN after a perturbation that was not finite
            gradient.mul_((1 + 0 * self._norm).to(gradient.device))
        self._perturbed, self._norm = [], None

    def second_step(self, zero_grad=False):
        """Descend from w along the gradients that the second pass left, taken at w + eps."""
        self.step()
        if zero_grad:
            self.zero_grad()

    def step(self, closure=None, scaler=None):
        """A whole step. `closure` clears the gradients, runs forward and backward and returns the loss.

        It is called twice; returned is the first loss, at w. If it adds up the gradients of several
        micro-batches, the perturbation follows their sum. If it raises, the weights are w. With a
        `torch.amp.GradScaler` it runs backward on `scaler.scale(loss)`; `scaler.update()` is left to you.
        Without a closure this is `second_step()`, and raises RuntimeError where there was no `first_step`.
        """
        losses = [None] if closure is None else self._both_passes([closure])
        if not self._may_descend:
            raise RuntimeError("SAM takes two passes: give step() a closure, or call first_step() before")
        self._may_descend = False
        self.restore()
        if scaler is None:
            self.base_optimizer.step()
        else:
            scaler.step(self.base_optimizer)
        return losses[0]

    def m_sharpness_step(self, closures, scaler=None):
        """A step that perturbs for each micro-batch of size m by itself: m-sharpness.

        `closures` are as in `step`, one a micro-batch, and each divides its loss by their number: the
        gradients found at w + eps are summed, in one more copy of them. Under DistributedDataParallel no
        closure holds `no_sync`. Returns the losses of the first calls, at w.
        """
        losses = self._both_passes(closures)
        self.step(scaler=scaler)
        return losses

    def _both_passes(self, closures):
        losses, total = [], {}
        for closure in closures:
            with torch.enable_grad(), self.first_pass():
                losses.append(closure())
            self.first_step()
            with torch.enable_grad(), self.second_pass():
                closure()
            if len(closures) > 1:
                self._add_gradients_to(total)
        for parameter, gradient in total.items():
            parameter.grad = gradient
        return losses

    @torch.no_grad()
    def _add_gradients_to(self, total):
        for group in self.param_groups:
            for parameters in _alike(p for p in group["params"] if p.grad is not None):
                known = [p for p in parameters if p in total]
                if known:
                    torch._foreach_add_([total[p] for p in known], [p.grad for p in known])
                total.update({p: p.grad.clone() for p in parameters if p not in total})

    def state_dict(self):
        """The base optimizer's, with `rho` and `adaptive` in its groups; the weights are not in it."""
        return self.base_optimizer.state_dict()

    def load_state_dict(self, state_dict):
        """Load what `state_dict` returned. Raises ValueError for the state of a plain optimizer."""
        if any("rho" not in group for group in state_dict["param_groups"]):
            raise ValueError("this is the state of a plain optimizer, not of SAM: load it into that one")
        self.base_optimizer.load_state_dict(state_dict)
        self._share()

    def __getstate__(self):
        if hasattr(self.model, "no_sync"):
            raise TypeError("SAM with a DistributedDataParallel model cannot be copied: copy state_dict()")
        own = "base_optimizer model sync_perturbation _before _perturbed _norm _may_descend".split()
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def add_param_group(self, group):
        """Add a group, perhaps with its own `rho` and `adaptive`. Raises ValueError for a rho below 0."""
        rho = group.get("rho", self.defaults["rho"])
        if not 0 <= rho < float("inf"):
            raise ValueError(f"rho must be a finite number of at least 0, not {rho}")
        super().add_param_group(group)
        if hasattr(self, "base_optimizer"):  # not yet while torch's constructor adds the first groups
            self.param_groups.pop()
            self.base_optimizer.add_param_group(group)

    def _random_streams(self):
        """The states of torch's random generators: (the CPU's, those of the parameters' other devices)."""
        devices = {p.device for group in self.param_groups for p in group["params"]} - {torch.device("cpu")}
        return torch.get_rng_state(), {d: torch.get_device_module(d).get_rng_state(d) for d in devices}

    @torch.no_grad()
    def _buffers(self):
        buffers = () if self.model is None else self.model.named_buffers()
        return {name: value.clone() for name, value in buffers}

    @torch.no_grad()
    def _put_back(self, streams, buffers):
        torch.set_rng_state(streams[0])
        for device, state in streams[1].items():
            torch.get_device_module(device).set_rng_state(state, device)
        for name, value in self.model.named_buffers() if buffers else ():
            if name in buffers:  # a first pass may have made new ones
                value.copy_(buffers[name])


def _alike(parameters):
    """Lists of the parameters that share device and number format, for multi-tensor calls."""
    lists = {}
    for parameter in parameters:
        lists.setdefault((parameter.device, parameter.dtype), []).append(parameter)
    return lists.values()


def _norm(tensors):
    """The joint norm of tensors of one device and number format; that of half-precision ones in fp32."""
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors, 2, dtype)))
