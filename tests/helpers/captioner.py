"""A captioner that no training run had to make."""

import dataclasses

import torch

from datasets.scenes import VOCABULARY
from models import catr


def write_captioner(path, decoder_layers=1):
    """Write a small captioner with random weights and the scenes' vocabulary to a file: its path."""
    torch.manual_seed(0)
    config = dataclasses.replace(catr.small_config(len(VOCABULARY)), decoder_layers=decoder_layers)
    model = catr.CATR(config)
    for layer in model.transformer["decoder"].layers:  # maps that differ from token to token
        torch.nn.init.normal_(layer.multihead_attn.in_proj_weight, std=0.5)
    fields = catr.checkpoint_fields(config, VOCABULARY)
    torch.save({**fields, "settings": {}, "state_dict": model.state_dict()}, path)
    return path
