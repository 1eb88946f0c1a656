"""Sharpness-aware minimisation around any torch optimizer. One file that needs torch alone: copy it.

    optimizer = SAM(model.parameters(), torch.optim.Adam, lr=1e-4, rho=0.05)
    for images, targets in loader:
        def closure():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), targets)
            loss.backward()
            return loss
        optimizer.step(closure)  # calls it twice

or, with the two passes written out:

        F.cross_entropy(model(images), targets).backward()
        optimizer.first_step(zero_grad=True)
        F.cross_entropy(model(images), targets).backward()
        optimizer.second_step(zero_grad=True)

SAM (Foret et al. 2020, arXiv:2010.01412, eq. 2) climbs from the weights w to w + eps and descends from w along the
gradient found there; g is the gradient at w, and the norm is joint over all parameters:

    eps = rho * g / ||g||

ASAM (Kwon et al. 2021, arXiv:2102.11600, eq. 9) measures the climb in units of each weight. Here T = |w| for every
parameter, biases too, and there is no small constant in it:

    eps = rho * T^2 g / ||T g||
"""

import torch


class SAM(torch.optim.Optimizer):
    """An optimizer that takes the steps of `base_optimizer(params, **base_kwargs)` along the gradient at w + eps.

    Its parameter groups and its state are those of the base optimizer, so learning-rate schedulers and `state_dict()`
    work as they do there. `rho` (at least 0; 0 is the base optimizer) and `adaptive` (ASAM) may be set by group.
    """

    def __init__(self, params, base_optimizer, rho=0.05, adaptive=False, **base_kwargs):
        if not 0 <= rho < float("inf"):
            raise ValueError(f"rho must be a finite number of at least 0, not {rho}")
        super().__init__(params, {"rho": rho, "adaptive": adaptive, **base_kwargs})
        self.base_optimizer = base_optimizer(self.param_groups, **base_kwargs)
        self.defaults = {**self.base_optimizer.defaults, **self.defaults}
        self._share()
        self._climbed = []  # (parameters, their weights before the climb), between the two steps alone

    def _share(self):
        self.param_groups, self.state = self.base_optimizer.param_groups, self.base_optimizer.state

    @torch.no_grad()
    def first_step(self, zero_grad=False):
        """Climb from w to w + eps, with eps from the gradients that the first backward pass left.

        eps does not depend on the scale of the gradients, so those of a scaled loss serve as well. Parameters without
        a gradient stay where they are. If all gradients are zero, nothing moves.
        """
        self.restore()
        groups = []
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if any(p.grad.is_sparse for p in parameters):
                raise ValueError("SAM does not take sparse gradients: build nn.Embedding with sparse=False")
            if parameters:
                groups.append((group, parameters, self._along([p.grad for p in parameters], parameters, group)))
        if groups:
            norms = [norm.to(groups[0][1][0].device) for _, _, along in groups for norm in torch._foreach_norm(along)]
            norm = torch.linalg.vector_norm(torch.stack(norms))
            for group, parameters, along in groups:
                if group["rho"] == 0:
                    continue
                scale = torch.where(norm == 0, 0.0, group["rho"] / norm)
                self._climbed.append((parameters, [p.clone() for p in parameters]))
                eps = torch._foreach_mul(self._along(along, parameters, group), scale)
                torch._foreach_add_(parameters, eps)
        if zero_grad:
            self.zero_grad()

    @staticmethod
    def _along(tensors, parameters, group):
        """T * tensors for ASAM, the tensors themselves for SAM."""
        return torch._foreach_mul(tensors, torch._foreach_abs(parameters)) if group["adaptive"] else tensors

    @torch.no_grad()
    def restore(self):
        """Put the weights of before `first_step` back, exactly. Does nothing where they already are."""
        for parameters, weights in self._climbed:
            torch._foreach_copy_(parameters, weights)
        self._climbed = []

    def second_step(self, zero_grad=False):
        """Descend from w along the gradients that the second backward pass left, taken at w + eps."""
        self.restore()
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    def step(self, closure):
        """Both steps. `closure` clears the gradients, runs forward and backward and returns the loss.

        It is called twice; the loss of the first call, at w, is returned. If the second call fails, w is put back.
        """
        with torch.enable_grad():
            loss = closure()
        self.first_step()
        try:
            with torch.enable_grad():
                closure()
        finally:
            self.restore()
        self.second_step()
        return loss

    def state_dict(self):
        """The base optimizer's, whose groups also hold `rho` and `adaptive`. It has no copy of the weights."""
        return self.base_optimizer.state_dict()

    def load_state_dict(self, state_dict):
        """Load what `state_dict` returned. Raises ValueError for the state of a plain optimizer."""
        if any("rho" not in group for group in state_dict["param_groups"]):
            raise ValueError("this is the state of a plain optimizer, not of SAM: load it into that one")
        self.base_optimizer.load_state_dict(state_dict)
        self._share()

    def add_param_group(self, group):
        """Add a group to both optimizers; it may carry its own `rho` and `adaptive`."""
        super().add_param_group(group)
        if hasattr(self, "base_optimizer"):  # not yet while torch's constructor adds the first groups
            self.param_groups.pop()
            self.base_optimizer.add_param_group(group)
