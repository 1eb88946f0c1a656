"""CATR, an image captioner: a ResNet, a transformer's encoder over its feature map, and a decoder of tokens.

The public project publishes a checkpoint as a dict whose `model` is a state dict; its key names are the ones
of the modules here, so that it loads as it is. A checkpoint of `p2_train.py` is a dict that torch reads with
`weights_only=True`:

    format        1
    captioner     the Config, as a dict
    vocabulary    the tokens, in the order of their ids
    settings      what the run was started with
    state_dict    the weights

Shapes: B photos, N cells of a feature map, T tokens, C channels (`Config.width`), d = C / heads.
"""

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from timm.layers import GroupNorm
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.transforms.functional import pil_to_tensor

from common.errors import BadInput
from common.files import read_tensors
from models.tokenizer import Tokenizer
from models.weights import load_finite, refuse_other_format, refuse_other_keys, state_dict_in, unwrapped

STRIDE = 16  # pixels between the centres of two cells of the feature map
MAX_SIZE, MAX_LAYERS, MAX_PHOTO = 10**6, 1000, 4096  # that a file may ask for
EMBEDDING = "transformer.embeddings.word_embeddings.weight"


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
    stem_width: int = 0  # of the first two of three 3x3 convolutions before the stages; 0: one of 7x7
    pretrained_backbone: bool = True  # bottlenecks and frozen batch norm; else basic blocks and group norm

    def __post_init__(self):
        if not all(isinstance(each, tuple) and len(each) == 4 for each in (self.blocks, self.channels)):
            raise ValueError("there must be four stages")
        layers = (self.encoder_layers, self.decoder_layers, *self.blocks)
        sizes = (*layers, *self.channels, self.vocabulary, self.width, self.heads, self.feedforward,
                 self.head_width, self.positions, self.longer_side, self.stem_width + 1)
        if not all(isinstance(each, int) and 0 < each <= MAX_SIZE for each in sizes):
            raise ValueError(f"sizes must be whole numbers from 1 to {MAX_SIZE}")
        if max(layers) > MAX_LAYERS or self.longer_side > MAX_PHOTO:
            raise ValueError(f"layers above {MAX_LAYERS} or photos above {MAX_PHOTO}")
        if self.width % self.heads or self.width % 4 or not 0 <= self.dropout < 1:
            raise ValueError("the width must be a multiple of the heads and of 4, and dropout a share")


def small_config(vocabulary):
    """The sizes of the captioner that is trained on drawn scenes: about a million parameters."""
    return Config(vocabulary, width=128, heads=4, encoder_layers=1, decoder_layers=1, feedforward=256,
                  head_width=128, positions=40, dropout=0.0, longer_side=128, blocks=(1, 1, 1, 1),
                  channels=(32, 64, 96, 128), stem_width=8, pretrained_backbone=False)


def resnet(config):
    """The backbone: photos (B, 3, h, w) -> features (B, channels, H, W) of stride 16; its end is dilated."""
    block, norm = (Bottleneck, FrozenBatchNorm2d) if config.pretrained_backbone else (
        BasicBlock, partial(GroupNorm, num_groups=8))
    stem = {"stem_type": "deep", "stem_width": config.stem_width} if config.stem_width else {}
    return ResNet(block, config.blocks, channels=config.channels, norm_layer=norm, output_stride=STRIDE,
                  num_classes=0, global_pool="", **stem)


class FrozenBatchNorm2d(torchvision.ops.FrozenBatchNorm2d):
    """torchvision's, but for its output: in the number format of the input, under autocast too."""

    def __init__(self, channels, **factory):
        super().__init__(channels)

    def forward(self, x):
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        bias = self.bias - self.running_mean * scale
        return x * scale.to(x)[:, None, None] + bias.to(x)[:, None, None]


class Attention(nn.Module):
    """torch.nn.MultiheadAttention's parameters; the keys and values can be kept."""

    def __init__(self, config):
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * config.width, config.width))  # q, k and v
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * config.width))
        self.out_proj = nn.Linear(config.width, config.width)

    def _project(self, x, part):
        weight, bias = self.in_proj_weight.chunk(3)[part], self.in_proj_bias.chunk(3)[part]
        return F.linear(x, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, keys, values):
        """(B, N, C) each -> (B, heads, N, d) each."""
        return self._project(keys, 1), self._project(values, 2)

    def forward(self, queries, keys, values, mask=None):
        """queries (B, T, C), keys and values of `keys_values`; mask: True where to attend. -> (B, T, C)."""
        mixed = F.scaled_dot_product_attention(self._project(queries, 0), keys, values, attn_mask=mask,
                                               dropout_p=self.dropout if self.training else 0.0)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def weights(self, queries, keys, mask=None):
        """softmax(q k^T / sqrt(d)), float32 (B, heads, T, N): the weights of the values in `forward`."""
        with torch.autocast(keys.device.type, enabled=False):
            scores = self._project(queries.float(), 0) @ keys.float().mT / math.sqrt(keys.shape[-1])
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

    def forward(self, x, positions, causal, tokens, memory, mask, with_maps):
        """With keys and values, `tokens` before x, `memory` of the photo: (x, all tokens', maps or None)."""
        normed = self.norm1(x)
        new = self.self_attn.keys_values(normed + positions, normed)
        tokens = [torch.cat(pair, 2) for pair in zip(tokens, new)]
        x = x + self.dropout(self.self_attn(normed + positions, *tokens, causal))
        queries = self.norm2(x) + positions
        x = x + self.dropout(self.multihead_attn(queries, *memory, mask))
        maps = self.multihead_attn.weights(queries, memory[0], mask) if with_maps else None
        return x + self.feed_forward(self.norm3(x)), tokens, maps


def stack(layer, count, config):
    """The layers of the encoder or of the decoder, and the norm after the last one."""
    return nn.ModuleDict({"layers": nn.ModuleList(layer(config) for _ in range(count)),
                          "norm": nn.LayerNorm(config.width)})


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


def sine_positions(height, width, channels, device=None):
    """The position encoding of a feature map's cells, (height * width, channels): half for y, half for x.

    With p the row or column, counted from 1, over the last one (+ 1e-6) times 2 pi, channels 2i and 2i + 1 of
    a half of c are sin and cos of p / 10000^(2i / c) (Carion et al. 2020, arXiv:2005.12872, appendix A.4).
    """
    half = channels // 2
    rates = 10000 ** (torch.arange(half, device=device) // 2 * 2 / half)
    encoded = []
    for count in (height, width):
        angles = (torch.arange(1, count + 1, device=device) / (count + 1e-6) * 2 * math.pi)[:, None] / rates
        encoded.append(torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], 2).flatten(1))
    y, x = encoded
    return torch.cat([y[:, None].expand(-1, width, -1), x[None].expand(height, -1, -1)], 2).flatten(0, 1)


@dataclass
class Memory:
    """What the decoder attends to, of B photos."""

    features: torch.Tensor  # (B, N, C), of which photo i takes the first H * W cells
    positions: torch.Tensor  # (B, N, C)
    mask: torch.Tensor  # (B, 1, 1, N), False on padding; None without any
    grids: list  # (H, W) of each photo's map


class Cache:
    """Each decoder layer's keys and values, (B, heads, ., d), of the photo and of the tokens so far."""

    def __init__(self, memory, mask):
        self.memory, self.mask = memory, mask
        self.tokens = [[each[:, :, :0] for each in keys_values] for keys_values in memory]

    def select(self, rows):
        """Keep the captions `rows` (long tensor), each as often as it is named."""
        self.memory, self.tokens = ([[each[rows] for each in keys_values] for keys_values in layers]
                                    for layers in (self.memory, self.tokens))
        if self.mask is not None:
            self.mask = self.mask[rows]


class CATR(nn.Module):
    """The captioner: `encode` photos once, `begin` captions, and `decode` tokens, some or all at once."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for each shape, and photos have many
        body = resnet(config)
        self.backbone = nn.ModuleList([nn.ModuleDict({"body": body})])
        self.input_proj = nn.Conv2d(body.num_features, config.width, 1)
        self.transformer = nn.ModuleDict({
            "encoder": stack(EncoderLayer, config.encoder_layers, config),
            "decoder": stack(DecoderLayer, config.decoder_layers, config),
            "embeddings": Embeddings(config)})
        self.mlp = Head(config)
        for parameter in self.transformer.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def encode(self, photos):
        """Preprocessed photos (3, h, w), of any sizes, as a Memory: each as if alone, no pixel padded."""
        maps = {}
        for size in dict.fromkeys(photo.shape for photo in photos):
            indices = [i for i, photo in enumerate(photos) if photo.shape == size]
            features = self.backbone[0].body(torch.stack([photos[i] for i in indices]))
            maps.update(zip(indices, self.input_proj(features)))
        maps = [maps[i] for i in range(len(photos))]
        grids = [tuple(one.shape[1:]) for one in maps]
        x = pad_sequence([one.flatten(1).T for one in maps], batch_first=True)
        encoding = {grid: sine_positions(*grid, self.config.width, x.device).to(x) for grid in set(grids)}
        positions = pad_sequence([encoding[grid] for grid in grids], batch_first=True)
        mask = None
        if len(encoding) > 1:
            cells = [x.new_ones(height * width, dtype=torch.bool) for height, width in grids]
            mask = pad_sequence(cells, batch_first=True)[:, None, None]
        for layer in self.transformer["encoder"].layers:
            x = layer(x, positions, mask)
        return Memory(self.transformer["encoder"].norm(x), positions, mask, grids)

    def begin(self, memory):
        """The Cache of captions for the photos of a Memory, one each, still without tokens."""
        keys = memory.features + memory.positions
        return Cache([layer.multihead_attn.keys_values(keys, memory.features)
                      for layer in self.transformer["decoder"].layers], memory.mask)

    def decode(self, tokens, cache, with_maps=False):
        """The logits (B, T, vocabulary) of what follows each of the next `tokens` (B, T), which are cached.

        With `with_maps`, (logits, the cross-attention of all layers, a list of (B, heads, T, N)).
        """
        before, count = cache.tokens[0][0].shape[2], tokens.shape[1]
        if before + count > self.config.positions:
            raise ValueError(f"{before + count} tokens, and positions for {self.config.positions}")
        embeddings = self.transformer["embeddings"]
        positions = embeddings.position_embeddings.weight[before:before + count]
        causal = torch.ones(count, before + count, dtype=torch.bool, device=tokens.device).tril(before)
        x = embeddings(tokens, positions)
        maps = []
        for i, layer in enumerate(self.transformer["decoder"].layers):
            x, cache.tokens[i], layer_maps = layer(x, positions, causal, cache.tokens[i], cache.memory[i],
                                                   cache.mask, with_maps)
            maps.append(layer_maps)
        logits = self.mlp(self.transformer["decoder"].norm(x))
        return (logits, maps) if with_maps else logits

    def forward(self, photos, tokens):
        """For training: the logits (B, T, vocabulary) of what follows each of the `tokens` (B, T)."""
        return self.decode(tokens, self.begin(self.encode(photos)))


def resized(size, longer_side):
    """The (width, height) of a resized photo: int(side * (longer_side / longer)) in floats, at least 1."""
    scale = longer_side / max(size)
    return tuple(max(1, int(side * scale)) for side in size)


def pixels(photo, config):
    """An RGB PIL image in the size that the model takes, resized bicubic: uint8 (3, h, w)."""
    return pil_to_tensor(photo.resize(resized(photo.size, config.longer_side), Image.Resampling.BICUBIC))


def normalise(pixels):
    """Pixels as the model takes them: float, mean and std 0.5."""
    return pixels.float().div_(255).sub_(0.5).div_(0.5)


def preprocess(photo, config):
    """An RGB PIL image as the model takes it: float (3, h, w)."""
    return normalise(pixels(photo, config))


def grid_box(size, grid, config):
    """Where the cells of the feature map `grid` (H, W) lie on a photo of `size` (width, height).

    Returns (left, top, right, bottom) in the photo's pixels, which the cells divide evenly. Convolutions are
    centred: cell i is about pixel 16 i of the resized photo, so the box reaches over the left and upper edge.
    """
    scale = [full / small for full, small in zip(size, resized(size, config.longer_side))]
    low = 0.5 - STRIDE / 2
    return (low * scale[0], low * scale[1],
            (low + STRIDE * grid[1]) * scale[0], (low + STRIDE * grid[0]) * scale[1])


def checkpoint_fields(config, vocabulary):
    """The dict described above, but for `settings` and `state_dict`, which belong to the run's state."""
    sizes = {name: list(value) if isinstance(value, tuple) else value
             for name, value in dataclasses.asdict(config).items()}
    return {"format": 1, "captioner": sizes, "vocabulary": list(vocabulary)}


def config_of(content):
    """The Config that a checkpoint of p2_train.py holds."""
    return Config(**{name: tuple(value) if isinstance(value, list) else value
                     for name, value in content["captioner"].items()})


def open_captioner(path, vocab=None, default_vocab=None):
    """Open a checkpoint of CATR, with its vocabulary file `vocab`, or one of p2_train.py, which has its own.

    `default_vocab`, if that file exists, serves where there is neither. Returns (model in evaluation mode,
    Tokenizer). Raises BadInput for anything else.
    """
    path, hint = Path(path), "pass a checkpoint of CATR or of p2_train.py"
    content = read_tensors(path)
    content = content if isinstance(content, dict) else {}
    if isinstance(content.get("arch"), str):
        raise BadInput(f"{path} is not a captioner: it is a classifier, {content['arch']}; {hint}")
    weights = unwrapped(state_dict_in(content, path, hint), EMBEDDING)
    if {"captioner", "vocabulary", "state_dict"} <= content.keys():
        model, tokenizer = _described(content, path, vocab)
    elif EMBEDDING in weights:
        if not vocab and default_vocab and default_vocab.exists():
            vocab = default_vocab
        model, tokenizer = _without_weights(Config()), _matching_vocabulary(weights, path, vocab)
    else:
        raise BadInput(f"{path} is not a captioner; {hint}")
    refuse_other_keys(weights, model, f"{path} does not fit the captioner", hint)
    load_finite(model, weights, path)
    return model.eval(), tokenizer


def _without_weights(config):
    """A CATR that takes no memory for what a file claims, nor time for weights that are replaced."""
    with torch.device("meta"):
        return CATR(config)


def _described(content, path, vocab):
    """(model without weights, Tokenizer) that a checkpoint of p2_train.py describes."""
    refuse_other_format(content, path)
    tokenizer = Tokenizer(content["vocabulary"], path)
    if vocab and Tokenizer.from_file(vocab).vocabulary != tokenizer.vocabulary:
        raise BadInput(f"--vocab {vocab} is not the vocabulary that {path} carries: leave --vocab out")
    try:
        config = config_of(content)
        if config.vocabulary != len(tokenizer.vocabulary):
            raise ValueError("the vocabulary is not that of the weights")
        return _without_weights(config), tokenizer
    except (TypeError, AttributeError, ValueError, RuntimeError) as error:
        message = f"{path} describes no captioner that this version knows: it is damaged, or newer"
        raise BadInput(message) from error


def _matching_vocabulary(weights, path, vocab):
    """The Tokenizer of the file `vocab`, which must have a token for each row of CATR's embedding."""
    if not vocab:
        raise BadInput(f"{path} carries no vocabulary: pass the vocab.txt of bert-base-uncased with --vocab")
    tokenizer = Tokenizer.from_file(vocab)
    embedding, count = weights[EMBEDDING], len(tokenizer.vocabulary)
    if embedding.dim() and len(embedding) != count:
        raise BadInput(f"--vocab {vocab} has {count} tokens and {path} {len(embedding)}: pass the vocabulary "
                       "that it was trained with")
    return tokenizer
