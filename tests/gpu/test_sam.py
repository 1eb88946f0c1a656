"""SAM's unit tests for which the device counts, on a GPU."""

import torch

from sam import SAM
from tests.unit import test_sam

for name in ("test_the_perturbation_has_norm_rho_and_its_way_back_exact",
             "test_what_is_not_finite_is_skipped",
             "test_the_perturbation_does_not_depend_on_the_scale_of_the_loss",
             "test_one_autocast_around_both_passes_does_not_hide_the_perturbation",
             "test_both_passes_see_the_same_random_numbers_and_the_stream_advances_once"):
    globals()[name] = getattr(test_sam, name)


def test_the_perturbation_never_waits_for_a_gpu():
    model = test_sam.network(torch.float32, "cuda")
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.1, model=model)
    batch = test_sam.batches(1, torch.float32, "cuda")[0]
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step(test_sam.closure_for(model, optimizer, batch))
    finally:
        torch.cuda.set_sync_debug_mode("default")
