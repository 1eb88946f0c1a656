"""CATR, an image captioner: a ResNet, a transformer's encoder over its feature map, and a decoder that predicts tokens.

The public project publishes a checkpoint as a dict whose `model` is a state dict; its key names are the ones of the modules
here, so that it loads as it is. A checkpoint of `p2_train.py` is a dict that torch reads with `weights_only=True`:

    format        1
    captioner     the Config, as a dict
    vocabulary    the tokens, in the order of their ids
    settings      what the run was started with
    state_dict    the weights

Shapes: B photos, N cells of a feature map, T tokens, C channels (`Config.width`), d = C / heads.
"""

import dataclasses
import difflib
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from timm.layers import GroupNorm, freeze_batch_norm_2d
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.transforms.functional import normalize, to_tensor

from common.errors import BadInput
from common.files import read_tensors, refuse_nonfinite_weights, refuse_other_format
from models.tokenizer import Tokenizer

STRIDE = 16  # pixels between the centres of two cells of the feature map
LARGEST, MOST_LAYERS, LARGEST_PHOTO = 10**6, 1000, 4096  # that a file may ask for


@dataclass(frozen=True)
class Config:
    """The sizes of a captioner; by default those of CATR."""

    vocabulary: int = 30522
    width: int = 256
    heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    feedforward: int = 2048
    head_width: int = 512
    positions: int = 128  # tokens of a caption at most
    dropout: float = 0.1
    longer_side: int = 299  # of a photo, in pixels
    blocks: tuple = (3, 4, 23, 3)  # of the ResNet's stages: ResNet-101
    channels: tuple = (64, 128, 256, 512)
    stem_width: int = 0  # of the first two of three 3x3 convolutions before the stages; 0: one 7x7 convolution
    pretrained_backbone: bool = True  # bottlenecks and frozen batch norm; if not, basic blocks and group norm, to be trained

    def __post_init__(self):
        sizes = [value for name, value in vars(self).items() if name not in ("dropout", "stem_width", "pretrained_backbone")]
        numbers = [each for value in sizes for each in (value if isinstance(value, tuple) else (value,))]
        if not all(isinstance(each, int) and each > 0 for each in (*numbers, self.stem_width + 1)):
            raise ValueError("sizes must be whole numbers above 0")
        if self.width % self.heads or self.width % 4 or not 0 <= self.dropout < 1:
            raise ValueError("the width must be a multiple of the heads and of 4, and dropout a share")
        stages = (self.blocks, self.channels)
        if max(numbers) > LARGEST or not all(isinstance(each, tuple) and len(each) == 4 for each in stages):
            raise ValueError(f"sizes above {LARGEST}, or not four stages")
        if max(self.encoder_layers, self.decoder_layers, *self.blocks) > MOST_LAYERS or self.longer_side > LARGEST_PHOTO:
            raise ValueError(f"more than {MOST_LAYERS} layers, or photos larger than {LARGEST_PHOTO} pixels")


def small_config(vocabulary):
    """The sizes of the captioner that is trained on drawn scenes: about a million parameters."""
    return Config(vocabulary, width=128, heads=4, encoder_layers=1, decoder_layers=1, feedforward=256, head_width=128,
                  positions=40, dropout=0.0, longer_side=128, blocks=(1, 1, 1, 1), channels=(32, 64, 96, 128), stem_width=8,
                  pretrained_backbone=False)


# Layers ------------------------------------------------------------------------------------------------------------


class Backbone(nn.Module):
    """A ResNet up to its last stage, which is dilated: photos (B, 3, h, w) -> features (B, channels, H, W) of stride 16."""

    def __init__(self, config):
        super().__init__()
        block, norm = (Bottleneck, nn.BatchNorm2d) if config.pretrained_backbone else (
            BasicBlock, partial(GroupNorm, num_groups=8))
        stem = {"stem_type": "deep", "stem_width": config.stem_width} if config.stem_width else {}
        self.body = ResNet(block, config.blocks, channels=config.channels, norm_layer=norm, output_stride=STRIDE,
                           num_classes=0, global_pool="", **stem)
        if config.pretrained_backbone:
            freeze_batch_norm_2d(self.body)

    def forward(self, photos):
        return self.body(photos)


class Attention(nn.Module):
    """Multi-head attention with the parameters of torch.nn.MultiheadAttention, whose keys and values can be kept."""

    def __init__(self, config):
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * config.width, config.width))  # of queries, keys and values
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * config.width))
        self.out_proj = nn.Linear(config.width, config.width)

    def _project(self, x, part):
        weight, bias = self.in_proj_weight.chunk(3)[part], self.in_proj_bias.chunk(3)[part]
        return F.linear(x, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, keys, values):
        """(B, N, C) each -> (B, heads, N, d) each."""
        return self._project(keys, 1), self._project(values, 2)

    def forward(self, queries, keys, values, mask=None):
        """queries (B, T, C), keys and values of `keys_values`; mask: bool, True where a query may look. -> (B, T, C)."""
        mixed = F.scaled_dot_product_attention(self._project(queries, 0), keys, values, attn_mask=mask,
                                               dropout_p=self.dropout if self.training else 0.0)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def weights(self, queries, keys, mask=None):
        """softmax(q k^T / sqrt(d)), float32 (B, heads, T, N), rows sum to 1: what `forward` weighs the values with."""
        with torch.autocast(keys.device.type, enabled=False):
            scores = self._project(queries.float(), 0) @ keys.float().transpose(-2, -1) / math.sqrt(keys.shape[-1])
            return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1)


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, each after a norm and beside a residual connection."""

    def __init__(self, config):
        super().__init__()
        self.self_attn = Attention(config)
        self.linear1 = nn.Linear(config.width, config.feedforward)
        self.linear2 = nn.Linear(config.feedforward, config.width)
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)

    def feed_forward(self, x):
        return self.dropout(self.linear2(self.dropout(self.linear1(x).relu())))

    def forward(self, x, positions, mask):
        normed = self.norm1(x)
        keys, values = self.self_attn.keys_values(normed + positions, normed)
        x = x + self.dropout(self.self_attn(normed + positions, keys, values, mask))
        return x + self.feed_forward(self.norm2(x))


class DecoderLayer(EncoderLayer):
    """Causal self-attention, cross-attention to the photo, a feed-forward network."""

    def __init__(self, config):
        super().__init__(config)
        self.multihead_attn = Attention(config)
        self.norm3 = nn.LayerNorm(config.width)

    def forward(self, x, positions, causal, cache, memory_mask, with_maps):
        """`cache` holds the keys and values of this layer and receives those of x. Returns (x, the cross-attention's map)."""
        normed = self.norm1(x)
        cache.append(*self.self_attn.keys_values(normed + positions, normed))
        x = x + self.dropout(self.self_attn(normed + positions, cache.keys, cache.values, causal))
        queries = self.norm2(x) + positions
        x = x + self.dropout(self.multihead_attn(queries, cache.memory_keys, cache.memory_values, memory_mask))
        maps = self.multihead_attn.weights(queries, cache.memory_keys, memory_mask) if with_maps else None
        return x + self.feed_forward(self.norm3(x)), maps


class Stack(nn.Module):
    """The layers of the encoder or of the decoder, and the norm after the last one."""

    def __init__(self, layers, config):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(config.width)


class Embeddings(nn.Module):
    """Tokens and their positions in the caption."""

    def __init__(self, config):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocabulary, config.width, padding_idx=Tokenizer.PAD)
        self.position_embeddings = nn.Embedding(config.positions, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=1e-12)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens, positions):
        return self.dropout(self.LayerNorm(self.word_embeddings(tokens) + positions))


class Head(nn.Module):
    """Three layers from a token's state to the logits of the next token."""

    def __init__(self, config):
        super().__init__()
        widths = [config.width, config.head_width, config.head_width, config.vocabulary]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in zip(widths, widths[1:]))

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


def sine_positions(height, width, channels):
    """The position encoding of a feature map's cells, (height * width, channels): y in the first half, x in the second.

    With p the row or column, counted from 1, over the last one (+ 1e-6) times 2 pi, channels 2i and 2i + 1 of a half of
    c channels are sin and cos of p / 10000^(2i / c). (Carion et al. 2020, arXiv:2005.12872, appendix A.4.)
    """
    half = channels // 2
    rates = 10000 ** (torch.arange(half) // 2 * 2 / half)
    encoded = []
    for count in (height, width):
        angles = (torch.arange(1, count + 1) / (count + 1e-6) * 2 * math.pi)[:, None] / rates
        encoded.append(torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], 2).flatten(1))
    y, x = encoded
    return torch.cat([y[:, None].expand(-1, width, -1), x[None].expand(height, -1, -1)], 2).flatten(0, 1)


# The network -------------------------------------------------------------------------------------------------------


@dataclass
class Memory:
    """What the decoder sees of B photos: (B, N, C) features and positions. Photo i's map is grids[i], (H, W), of its first
    H * W cells; the rest is padding, where `mask` (B, 1, 1, N) is False; it is None where there is none."""

    features: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    grids: list


class LayerCache:
    """The keys and values, (B, heads, ., d), of one decoder layer: of the tokens so far, and of the photo."""

    def __init__(self, memory_keys, memory_values):
        self.memory_keys, self.memory_values = memory_keys, memory_values
        self.keys, self.values = memory_keys[:, :, :0], memory_values[:, :, :0]

    def append(self, keys, values):
        self.keys, self.values = torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)

    def select(self, rows):
        for name in ("memory_keys", "memory_values", "keys", "values"):
            setattr(self, name, getattr(self, name)[rows])


@dataclass
class Cache:
    """Captions that are being written: what need not be computed again for their next tokens."""

    layers: list
    mask: torch.Tensor

    def select(self, rows):
        """Keep the captions `rows` (long tensor), each as often as it is named."""
        for layer in self.layers:
            layer.select(rows)
        if self.mask is not None:
            self.mask = self.mask[rows]


class CATR(nn.Module):
    """The captioner. `encode` photos once, `begin` captions, and `decode` tokens, some at a time or all at once."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.backbone = nn.ModuleList([Backbone(config)])
        self.input_proj = nn.Conv2d(self.backbone[0].body.num_features, config.width, 1)
        self.transformer = nn.ModuleDict({
            "encoder": Stack([EncoderLayer(config) for _ in range(config.encoder_layers)], config),
            "decoder": Stack([DecoderLayer(config) for _ in range(config.decoder_layers)], config),
            "embeddings": Embeddings(config)})
        self.mlp = Head(config)
        for parameter in self.transformer.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def encode(self, photos):
        """A list of preprocessed photos (3, h, w), of any sizes, as a Memory.

        Each is encoded as if it were alone: the backbone never sees a padded pixel, and padded cells are masked.
        """
        by_size, maps = {}, [None] * len(photos)
        for i, photo in enumerate(photos):
            by_size.setdefault(photo.shape, []).append(i)
        for indices in by_size.values():
            found = self.input_proj(self.backbone[0](torch.stack([photos[i] for i in indices])))
            for i, one in zip(indices, found):
                maps[i] = one
        grids = [tuple(one.shape[1:]) for one in maps]
        x = pad_sequence([one.flatten(1).T for one in maps], batch_first=True)
        encoding = {grid: sine_positions(*grid, self.config.width).to(x) for grid in set(grids)}
        positions = pad_sequence([encoding[grid] for grid in grids], batch_first=True)
        cells = torch.tensor([height * width for height, width in grids], device=x.device)
        mask = (torch.arange(x.shape[1], device=x.device) < cells[:, None])[:, None, None] if len(encoding) > 1 else None
        for layer in self.transformer["encoder"].layers:
            x = layer(x, positions, mask)
        return Memory(self.transformer["encoder"].norm(x), positions, mask, grids)

    def begin(self, memory):
        """The Cache of captions for the photos of a Memory, one each, still without tokens."""
        return Cache([LayerCache(*layer.multihead_attn.keys_values(memory.features + memory.positions, memory.features))
                      for layer in self.transformer["decoder"].layers], memory.mask)

    def decode(self, tokens, cache, with_maps=False):
        """The logits (B, T, vocabulary) of what follows each of the next `tokens` (B, T), which go into the cache.

        With `with_maps`, (logits, the cross-attention of all layers, a list of (B, heads, T, N)).
        """
        before, count = cache.layers[0].keys.shape[2], tokens.shape[1]
        if before + count > self.config.positions:
            raise ValueError(f"{before + count} tokens, and positions for {self.config.positions}")
        embeddings = self.transformer["embeddings"]
        positions = embeddings.position_embeddings.weight[before:before + count]
        causal = torch.ones(count, before + count, dtype=torch.bool, device=tokens.device).tril(before)
        x = embeddings(tokens, positions)
        maps = []
        for layer, kept in zip(self.transformer["decoder"].layers, cache.layers):
            x, seen = layer(x, positions, causal, kept, cache.mask, with_maps)
            maps.append(seen)
        logits = self.mlp(self.transformer["decoder"].norm(x))
        return (logits, maps) if with_maps else logits

    def forward(self, photos, tokens):
        """The logits (B, T, vocabulary) of what follows each token of the captions `tokens` (B, T): for training."""
        return self.decode(tokens, self.begin(self.encode(photos)))


# Photos ------------------------------------------------------------------------------------------------------------


def resized(size, longer_side):
    """The (width, height) that a photo of `size` is resized to: int(side * (longer_side / longer)) in floating point, at least 1."""
    scale = longer_side / max(size)
    return tuple(max(1, int(side * scale)) for side in size)


def preprocess(photo, config):
    """An RGB PIL image as the model sees it: float (3, h, w), bicubic, mean and std 0.5."""
    smaller = photo.resize(resized(photo.size, config.longer_side), Image.Resampling.BICUBIC)
    return normalize(to_tensor(smaller), [0.5] * 3, [0.5] * 3)


def seen_box(size, grid, config):
    """Where the cells of the feature map `grid` (H, W) lie on a photo of `size` (width, height).

    Returns (left, top, right, bottom) in the photo's pixels, which the cells divide evenly. Every convolution is centred:
    cell i stands for the neighbourhood of pixel 16 i of the resized photo. So the box reaches over the left and upper edge.
    """
    scale = [full / small for full, small in zip(size, resized(size, config.longer_side))]
    low = 0.5 - STRIDE / 2
    return (low * scale[0], low * scale[1],
            (low + STRIDE * grid[1]) * scale[0], (low + STRIDE * grid[0]) * scale[1])


# Checkpoints -------------------------------------------------------------------------------------------------------


def checkpoint_fields(config, vocabulary):
    """The dict described at the top of this file, all but `settings` and `state_dict`, which belong to the run's state."""
    return {"format": 1, "captioner": {name: list(value) if isinstance(value, tuple) else value
                                       for name, value in dataclasses.asdict(config).items()},
            "vocabulary": list(vocabulary)}


def config_of(content):
    """The Config that a checkpoint of p2_train.py holds."""
    return Config(**{name: tuple(value) if isinstance(value, list) else value
                     for name, value in content["captioner"].items()})


def open_captioner(path, vocab=None, default_vocab=None):
    """Open a checkpoint of CATR, with its vocabulary file `vocab`, or one of p2_train.py, which has its own.

    `default_vocab`, if that file exists, serves where there is neither.
    Returns (model in evaluation mode, Tokenizer). Raises BadInput for anything else, a file that does not fit named with
    the first key that does not.
    """
    path = Path(path)
    content = read_tensors(path)
    if not isinstance(content, dict):
        content = {}
    if {"captioner", "vocabulary", "state_dict"} <= content.keys():
        refuse_other_format(content, path)
        tokenizer, weights = Tokenizer(content["vocabulary"], path), content["state_dict"]
        if vocab and Tokenizer.from_file(vocab).vocabulary != tokenizer.vocabulary:
            raise BadInput(f"--vocab {vocab} is not the vocabulary of {path}, which carries its own: leave --vocab out")
        try:
            config = config_of(content)
            if config.vocabulary != len(tokenizer.vocabulary):
                raise ValueError("the vocabulary is not that of the weights")
            model = _outline(config)
        except (TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise BadInput(f"{path} describes no captioner that this version knows: it is damaged, or newer") from error
    elif isinstance(content.get("model"), dict):
        weights, model = content["model"], _outline(Config())
        vocab = vocab or (default_vocab if default_vocab and default_vocab.exists() else None)
        if not vocab:
            raise BadInput(f"{path} carries no vocabulary: pass the vocab.txt of bert-base-uncased with --vocab")
        tokenizer = Tokenizer.from_file(vocab)
        embedding = weights.get("transformer.embeddings.word_embeddings.weight")
        if isinstance(embedding, torch.Tensor) and embedding.dim() and len(embedding) != len(tokenizer.vocabulary):
            raise BadInput(f"--vocab {vocab} has {len(tokenizer.vocabulary)} tokens and {path} {len(embedding)}: pass the "
                           "vocabulary that it was trained with")
    else:
        kind = f": it is a classifier, {content['arch']}" if isinstance(content.get("arch"), str) else ""
        raise BadInput(f"{path} is not a captioner{kind}; pass a checkpoint of CATR or of p2_train.py")
    load_weights(model, weights, path)
    return model.eval(), tokenizer


def _outline(config):
    """A CATR without weights: none that would only be replaced, and no memory for what a file claims."""
    with torch.device("meta"):
        return CATR(config)


def load_weights(model, weights, path):
    """Put a state dict into a CATR. Raises BadInput that names the first missing, unknown or misshapen key."""
    if not isinstance(weights, dict) or not all(isinstance(key, str) for key in weights):
        raise BadInput(f"{path} holds no state dict: pass a checkpoint of CATR or of p2_train.py")
    own = model.state_dict()
    wrong = [f"{key} is missing" for key in own if key not in weights]
    for key in weights:
        if key not in own:
            near = difflib.get_close_matches(key, own, 1)
            wrong.append(f"{key} is unknown" + (f", near {near[0]}" if near and near[0] not in weights else ""))
    shapes = {key: tuple(value.shape) if _is_plain(value) else "no plain tensor" for key, value in weights.items()}
    wrong += [f"{key} is {shapes[key]}, not {tuple(own[key].shape)}" for key in own
              if key in weights and shapes[key] != tuple(own[key].shape)]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise BadInput(f"{path} does not fit the captioner ({wrong[0]}{more}): pass a checkpoint of CATR or of p2_train.py")
    refuse_nonfinite_weights(weights, path)
    model.load_state_dict({key: value.float() for key, value in weights.items()}, assign=True)


def _is_plain(value):
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_complex()
