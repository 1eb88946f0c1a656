"""CATR written a second time, to test models/catr.py against: torch's and torchvision's layers, no cache.

As in the public project, the whole network, its ResNet included, runs again for every token. The key names
are the same, so a state dict of either loads into the other.
"""

import math

import torch
import torchvision
from torch import nn

PAD = 0


class PlainLayer(nn.Module):
    def __init__(self, width, heads, feedforward, decodes):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.linear1 = nn.Linear(width, feedforward)
        self.linear2 = nn.Linear(feedforward, width)
        self.norm1 = nn.LayerNorm(width, eps=1e-5)
        self.norm2 = nn.LayerNorm(width, eps=1e-5)
        if decodes:
            self.multihead_attn = nn.MultiheadAttention(width, heads, batch_first=True)
            self.norm3 = nn.LayerNorm(width, eps=1e-5)


class PlainCATR(nn.Module):
    """`body` is a network from photos (1, 3, h, w) to features (1, channels, H, W), or torchvision's."""

    def __init__(self, vocabulary=30522, width=256, heads=8, encoder_layers=6, decoder_layers=6,
                 feedforward=2048, head_width=512, positions=128, body=None, channels=2048):
        super().__init__()
        if body is None:
            body = torchvision.models.resnet101(weights=None, norm_layer=torchvision.ops.FrozenBatchNorm2d,
                                                replace_stride_with_dilation=[False, False, True])
            body.avgpool = body.fc = nn.Identity()
            body.forward = self._features
        backbone = nn.Module()
        backbone.body = body
        self.backbone = nn.ModuleList([backbone])
        self.input_proj = nn.Conv2d(channels, width, 1)
        self.transformer = nn.Module()
        for name, count in (("encoder", encoder_layers), ("decoder", decoder_layers)):
            stack = nn.Module()
            stack.layers = nn.ModuleList([PlainLayer(width, heads, feedforward, decodes=name == "decoder")
                                          for _ in range(count)])
            stack.norm = nn.LayerNorm(width, eps=1e-5)
            setattr(self.transformer, name, stack)
        embeddings = self.transformer.embeddings = nn.Module()
        embeddings.word_embeddings = nn.Embedding(vocabulary, width)
        embeddings.position_embeddings = nn.Embedding(positions, width)
        embeddings.LayerNorm = nn.LayerNorm(width, eps=1e-12)
        self.mlp = nn.Module()
        self.mlp.layers = nn.ModuleList([nn.Linear(width, head_width), nn.Linear(head_width, head_width),
                                         nn.Linear(head_width, vocabulary)])
        self.eval()

    def _features(self, photos):
        body = self.backbone[0].body
        x = body.maxpool(body.relu(body.bn1(body.conv1(photos))))
        return body.layer4(body.layer3(body.layer2(body.layer1(x))))

    @torch.no_grad()
    def forward(self, photo, tokens, length=None):
        """What follows each of `tokens`, a list of ids, for a photo (3, h, w), padded to `length` positions.

        Returns the logits (T, vocabulary) and the cross-attention (layers, heads, T, H, W) of the T tokens.
        """
        features = self.input_proj(self.backbone[0].body(photo[None]))
        height, width = features.shape[-2:]
        cells = torch.stack([features[0, :, i, j] for i in range(height) for j in range(width)])[None]
        where = photo_positions(height, width, features.shape[1])[None]
        for layer in self.transformer.encoder.layers:
            normed = layer.norm1(cells)
            cells = cells + layer.self_attn(normed + where, normed + where, normed)[0]
            cells = cells + layer.linear2(torch.relu(layer.linear1(layer.norm2(cells))))
        cells = self.transformer.encoder.norm(cells)

        length = length or len(tokens)
        ids = torch.tensor([list(tokens) + [PAD] * (length - len(tokens))])
        empty = torch.tensor([[i >= len(tokens) for i in range(length)]])
        future = torch.tensor([[key > query for key in range(length)] for query in range(length)])
        embeddings = self.transformer.embeddings
        order = embeddings.position_embeddings(torch.arange(length))[None]
        x = embeddings.LayerNorm(embeddings.word_embeddings(ids) + order)
        maps = []
        for layer in self.transformer.decoder.layers:
            normed = layer.norm1(x)
            x = x + layer.self_attn(normed + order, normed + order, normed, key_padding_mask=empty,
                                    attn_mask=future)[0]
            context, weights = layer.multihead_attn(layer.norm2(x) + order, cells + where, cells,
                                                    need_weights=True, average_attn_weights=False)
            x = x + context
            x = x + layer.linear2(torch.relu(layer.linear1(layer.norm3(x))))
            maps.append(weights[0, :, :len(tokens)].unflatten(-1, (height, width)))
        x = self.transformer.decoder.norm(x)[0, :len(tokens)]
        first, second, last = self.mlp.layers
        return last(torch.relu(second(torch.relu(first(x))))), torch.stack(maps)


def photo_positions(height, width, channels):
    """(height * width, channels): see `sine_positions` for what it should be."""
    half = channels // 2
    rows = torch.ones(height, width).cumsum(0)
    columns = torch.ones(height, width).cumsum(1)
    rows = rows / (rows[-1:] + 1e-6) * 2 * math.pi
    columns = columns / (columns[:, -1:] + 1e-6) * 2 * math.pi
    encoded = torch.empty(height, width, channels)
    for first, coordinates in ((0, rows), (half, columns)):
        for i in range(half // 2):
            angles = coordinates / 10000 ** (2 * i / half)
            encoded[:, :, first + 2 * i] = torch.sin(angles)
            encoded[:, :, first + 2 * i + 1] = torch.cos(angles)
    return encoded.reshape(height * width, channels)


def greedy(plain, photo, start, end, max_tokens, length=None):
    """The most probable token each time.

    Returns (ids, logits (T, vocabulary), maps (layers, heads, T, H, W)), row t from step t.
    """
    ids, logits, maps = [], [], []
    while len(ids) < max_tokens and end not in ids:
        step, seen = plain(photo, [start, *ids], length)
        logits.append(step[-1])
        maps.append(seen[:, :, -1])
        ids.append(int(step[-1].argmax()))
    return ids, torch.stack(logits), torch.stack(maps, 2)


def next_log_probs(plain, photo, start, ids, length=None):
    return plain(photo, [start, *ids], length)[0][-1].double().log_softmax(0).tolist()


def beam_search(plain, photo, start, end, max_tokens, beam, length=None):
    """The caption of the highest mean log-probability among the `beam` beginnings kept at each step."""
    kept = [(0.0, [])]
    for _ in range(max_tokens):
        ended = [(total, ids) for total, ids in kept if end in ids]
        longer = []
        for total, ids in kept:
            if end not in ids:
                for token, log_prob in enumerate(next_log_probs(plain, photo, start, ids, length)):
                    longer.append((total + log_prob, [*ids, token]))
        longer.sort(key=lambda hypothesis: -hypothesis[0])
        kept = ended + longer[:beam - len(ended)]
    return max(kept, key=lambda hypothesis: hypothesis[0] / len(hypothesis[1]))[1]


def best_of_all(plain, photo, start, end, max_tokens):
    """(mean log-probability, ids) of the best of all captions, by trying each."""
    best = (-math.inf, None)
    pending = [(0.0, [])]
    while pending:
        total, ids = pending.pop()
        if ids and (ids[-1] == end or len(ids) == max_tokens):
            best = max(best, (total / len(ids), ids))
        else:
            for token, log_prob in enumerate(next_log_probs(plain, photo, start, ids)):
                pending.append((total + log_prob, [*ids, token]))
    return best


def expected_keys():
    """Yields the name and the shape of each tensor of CATR."""

    def affine(name, width, *names):
        for each in names:
            yield f"{name}.{each}", (width,)

    def batch_norm(name, width):
        yield from affine(name, width, "weight", "bias", "running_mean", "running_var")

    def linear(name, width_in, width_out):
        yield f"{name}.weight", (width_out, width_in)
        yield f"{name}.bias", (width_out,)

    def attention(name):
        yield f"{name}.in_proj_weight", (768, 256)
        yield f"{name}.in_proj_bias", (768,)
        yield from linear(f"{name}.out_proj", 256, 256)

    body = "backbone.0.body"
    yield f"{body}.conv1.weight", (64, 3, 7, 7)
    yield from batch_norm(f"{body}.bn1", 64)
    entering = 64
    for stage, (blocks, inner) in enumerate([(3, 64), (4, 128), (23, 256), (3, 512)], start=1):
        for block in range(blocks):
            name = f"{body}.layer{stage}.{block}"
            shapes = [(inner, entering, 1, 1), (inner, inner, 3, 3), (4 * inner, inner, 1, 1)]
            for i, shape in enumerate(shapes, start=1):
                yield f"{name}.conv{i}.weight", shape
                yield from batch_norm(f"{name}.bn{i}", shape[0])
            if block == 0:
                yield f"{name}.downsample.0.weight", (4 * inner, entering, 1, 1)
                yield from batch_norm(f"{name}.downsample.1", 4 * inner)
            entering = 4 * inner
    yield "input_proj.weight", (256, 2048, 1, 1)
    yield "input_proj.bias", (256,)
    stacks = ("encoder", ["self_attn"], 2), ("decoder", ["self_attn", "multihead_attn"], 3)
    for stack, attentions, norms in stacks:
        for layer in range(6):
            name = f"transformer.{stack}.layers.{layer}"
            for each in attentions:
                yield from attention(f"{name}.{each}")
            yield from linear(f"{name}.linear1", 256, 2048)
            yield from linear(f"{name}.linear2", 2048, 256)
            for i in range(norms):
                yield from affine(f"{name}.norm{i + 1}", 256, "weight", "bias")
        yield from affine(f"transformer.{stack}.norm", 256, "weight", "bias")
    yield "transformer.embeddings.word_embeddings.weight", (30522, 256)
    yield "transformer.embeddings.position_embeddings.weight", (128, 256)
    yield from affine("transformer.embeddings.LayerNorm", 256, "weight", "bias")
    for i, (width_in, width_out) in enumerate([(256, 512), (512, 512), (512, 30522)]):
        yield from linear(f"mlp.layers.{i}", width_in, width_out)
