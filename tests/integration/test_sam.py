from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from sam import SAM

ROOT = Path(__file__).resolve().parents[2]


def test_a_model_compiled_by_inductor_takes_the_same_steps():
    ends = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
        forward = torch.compile(model) if compiled else model
        optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.5, lr=0.1, model=model)
        for _ in range(3):
            images, targets = torch.randn(8, 5), torch.randint(3, (8,))

            def closure(forward=forward, optimizer=optimizer, images=images, targets=targets):
                optimizer.zero_grad()
                cross_entropy(forward(images), targets).backward()

            optimizer.step(closure)
        ends.append([parameter.detach() for parameter in model.parameters()])
    for plain, fused in zip(*ends):
        torch.testing.assert_close(plain, fused, rtol=0, atol=1e-6)
