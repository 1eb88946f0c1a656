import torch

from models.losses import NO_TARGET, ClassificationLoss

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0], [0.5, 0.0, 3.0]])


def model(images):
    return LOGITS[images]


def test_the_loss_is_the_sum_over_images_and_no_image_counts_for_nothing():
    """Against -log p written out, with 0.3 of each label spread over the three classes."""
    log_p = LOGITS.log_softmax(1)
    images, targets = torch.tensor([0, 1, 2]), torch.tensor([0, 2, NO_TARGET])
    loss, correct = ClassificationLoss()(model, (images, targets))
    torch.testing.assert_close(loss, -log_p[0, 0] - log_p[1, 2])
    assert correct == 1
    smooth, _ = ClassificationLoss(0.3)(model, (images, targets))
    torch.testing.assert_close(smooth, -0.7 * (log_p[0, 0] + log_p[1, 2]) - 0.1 * log_p[:2].sum())


def test_mixed_targets_are_shares_of_classes_and_the_largest_is_the_answer():
    shares = torch.tensor([[0.6, 0.4, 0.0], [0.7, 0.3, 0.0], [0.0, 0.0, 0.0]])  # the last one for no image
    loss, correct = ClassificationLoss()(model, (torch.tensor([0, 1, 2]), shares))
    torch.testing.assert_close(loss, -(LOGITS.log_softmax(1) * shares).sum())
    assert correct == 1
