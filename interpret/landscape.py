"""How flat a minimum is: loss along random directions, its rise at SAM's perturbation, Hessian eigenvalues.

Here `loss(weights, batch)` is the mean loss of a batch as a function of the weights, a dict of tensors by
parameter name; a batch is (inputs, targets). Over several batches, every image counts alike. A module's
weights are never written to.
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from threadpoolctl import threadpool_limits
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from common.errors import BadInput


def weights_of(model):
    """The weights of a module, a dict by parameter name, in the module's own storage."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def classification_loss(model):
    """The mean cross-entropy of a classifier as a `loss`, of batches (images, targets)."""
    return lambda weights, batch: F.cross_entropy(functional_call(model, weights, (batch[0],)), batch[1])


@torch.no_grad()
def mean_loss(loss, weights, batches):
    """The mean loss over the images of all batches, a float."""
    total = sum(loss(weights, batch).double() * len(batch[1]) for batch in batches)
    return (total / sum(len(targets) for _, targets in batches)).item()


def mean_gradient(loss, weights, batches):
    """The gradient of `mean_loss`, a dict like the weights; zero where the loss does not depend on them."""
    leaves = _leaves(weights)
    images = sum(len(targets) for _, targets in batches)
    total = [torch.zeros_like(weight) for weight in weights.values()]
    for batch in batches:
        gradient = torch.autograd.grad(loss(leaves, batch), list(leaves.values()), materialize_grads=True)
        torch._foreach_add_(total, gradient, alpha=len(batch[1]) / images)
    return dict(zip(weights, total))


def _leaves(weights):
    return {name: weight.detach().requires_grad_() for name, weight in weights.items()}


def _moved(weights, direction, distance):
    return {name: weight + distance * direction[name] for name, weight in weights.items()}


def filter_norms(weight):
    """The norm of each filter of a weight (not of one dimension), in a shape that broadcasts to it.

    A filter makes one output: a row of a matrix, a kernel of a convolution. Of position embeddings and prefix
    tokens (1, N, channels) it is the vector of each token.
    """
    first = 2 if weight.ndim == 3 and len(weight) == 1 else 1
    return torch.linalg.vector_norm(weight, dim=tuple(range(first, weight.ndim)), keepdim=True)


def random_directions(models, count, seed):
    """`count` random directions in weight space, the same for all models: a list of dicts like their weights.

    They are Gaussian, normalised by filter (Li et al. 2018, arXiv:1712.09913, section 4): for each filter i
    d_i <- d_i / ||d_i|| * ||w_i||, with the mean of ||w_i|| over `models`, dicts of weights of the same
    shapes. Weights of one dimension (biases, normalisation layers) stay as they are, as in the authors' code.
    """
    generator = torch.Generator().manual_seed(seed)

    def direction_of(*weights):
        raw = torch.randn(weights[0].shape, generator=generator, dtype=weights[0].dtype).to(weights[0].device)
        if raw.ndim < 2:
            return torch.zeros_like(raw)
        return raw / filter_norms(raw) * torch.stack([filter_norms(weight) for weight in weights]).mean(0)

    return [{name: direction_of(*(weights[name] for weights in models)) for name in models[0]}
            for _ in range(count)]


def losses_along(loss, weights, batches, direction, distances):
    """The mean loss at weights + a * direction for each a of `distances`: an array."""
    return np.array([mean_loss(loss, _moved(weights, direction, a), batches) for a in distances])


def losses_over(loss, weights, batches, directions, across, up):
    """The mean loss at weights + a * directions[0] + b * directions[1]: [b of `up`, a of `across`]."""
    return np.stack([losses_along(loss, _moved(weights, directions[1], b), batches, directions[0], across)
                     for b in up])


def rises(loss, weights, batches, rhos):
    """The rise of the mean loss L at SAM's perturbation (Foret et al. 2020, arXiv:2010.01412, eq. 2):

    L(w + rho * g / ||g||) - L(w), for each rho; g is the gradient of L at w, ||g|| over all weights; 0 for 0.
    """
    gradient = mean_gradient(loss, weights, batches)
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradient.values()]))
    steps = [rho / norm.item() if norm else 0.0 for rho in rhos]
    return losses_along(loss, weights, batches, gradient, steps) - mean_loss(loss, weights, batches)


def hessian_product(loss, weights, batch):
    """The function v -> H v, with H the Hessian of a batch's mean loss and v flat, in the order of weights.

    The gradient is computed once and differentiated again for each v (Pearlmutter 1994), with attention as
    plain products: fused kernels have no second derivative.
    """
    named = _leaves(weights)
    leaves = list(named.values())
    sizes = [weight.numel() for weight in leaves]
    with sdpa_kernel(SDPBackend.MATH):
        gradient = torch.autograd.grad(loss(named, batch), leaves, create_graph=True, materialize_grads=True)

    def product(vector):
        along = [part.view_as(weight) for part, weight in zip(vector.split(sizes), leaves)]
        slope = sum((part * direction).sum() for part, direction in zip(gradient, along))
        curved = torch.autograd.grad(slope, leaves, retain_graph=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in curved])

    return product


def largest_eigenvalues(loss, weights, batch, count, seed=0, tolerance=1e-2):
    """The `count` most positive Hessian eigenvalues of a batch's mean loss: an array, largest first.

    By the implicitly restarted Lanczos method, from a random vector of `seed`, until the residual
    ||H v - lambda v|| is at most `tolerance` * lambda; the error of lambda goes with its square. Raises
    BadInput where Lanczos does not converge.
    """
    product, first = hessian_product(loss, weights, batch), next(iter(weights.values()))
    size = sum(weight.numel() for weight in weights.values())

    def multiply(vector):
        flat = torch.as_tensor(vector, dtype=first.dtype, device=first.device).flatten()
        return product(flat).cpu().numpy()

    start = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=first.dtype).numpy()
    hessian = LinearOperator((size, size), matvec=multiply, dtype=start.dtype)
    try:
        # BLAS threads that wait beside torch's cost more time than all of their work saves
        with threadpool_limits(1, user_api="blas"):
            # a basis of 16 vectors for 3 values needed the fewest products; scipy would take 20 at least
            values = eigsh(hessian, count, which="LA", v0=start, ncv=min(4 * count + 4, size), tol=tolerance,
                           maxiter=50, return_eigenvectors=False)
    except ArpackNoConvergence as error:
        raise BadInput(f"of {count} eigenvalues of the Hessian {len(error.eigenvalues)} converged: "
                       "pass another --seed") from error
    return np.sort(values)[::-1]
