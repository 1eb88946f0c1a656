"""Captions for photos: searched for greedily or with a beam, and passed through again, teacher-forced."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from common.errors import BadInput
from models.catr import preprocess
from models.tokenizer import Tokenizer


@torch.no_grad()
def encode(model, photos):
    """RGB PIL images as the Memory of a CATR, on its device. Raises BadInput if that is not finite."""
    device = next(model.parameters()).device
    memory = model.encode([preprocess(photo, model.config).to(device) for photo in photos])
    if not memory.features.isfinite().all():
        raise BadInput("the captioner gives values that are not finite: take another --checkpoint")
    return memory


@torch.inference_mode()  # many small operations, for which no_grad does more
def search(model, memory, tokenizer, max_tokens, beam=1):
    """The captions that a CATR gives the photos of a Memory: a list of lists of ids, without the start token.

    Each ends with the end token, unless it has `max_tokens` tokens. Beam search goes on with the `beam` most
    probable beginnings (1: greedy); one that has ended holds its place. The caption is the one with the
    highest mean log-probability of its tokens.
    """
    live = [[(0.0, [])] for _ in memory.grids]  # for each photo, beginnings: (log-probability, ids)
    ended = [[] for _ in memory.grids]
    cache = model.begin(memory)
    device = memory.features.device
    for _ in range(max_tokens):
        last = [ids[-1] if ids else tokenizer.start for beginnings in live for _, ids in beginnings]
        logits = model.decode(torch.tensor(last, device=device)[:, None], cache)[:, 0]
        log_probs = logits.double().log_softmax(1).cpu().split([len(beginnings) for beginnings in live])
        rows, parents = 0, []  # the rows of the cache that are gone on with
        for i, beginnings in enumerate(live):
            longer = _best_longer(beginnings, log_probs[i], beam - len(ended[i]))
            ended[i] += [(total, ids) for total, ids, _ in longer if ids[-1] == tokenizer.end]
            live[i] = [(total, ids) for total, ids, _ in longer if ids[-1] != tokenizer.end]
            parents += [rows + parent for _, ids, parent in longer if ids[-1] != tokenizer.end]
            rows += len(beginnings)
        if not parents:
            break
        if parents != list(range(rows)):
            cache.select(torch.tensor(parents, device=device))
    captions = [one + other for one, other in zip(ended, live)]
    return [max(of_photo, key=lambda caption: caption[0] / len(caption[1]))[1] for of_photo in captions]


def _best_longer(beginnings, log_probs, count):
    """The `count` most probable beginnings with one more token: (log-probability, ids, index before).

    `log_probs` (beginnings, V) are those of the tokens to come.
    """
    totals = torch.tensor([total for total, _ in beginnings], dtype=torch.float64)
    candidates = (totals[:, None] + log_probs).flatten()
    best = candidates.topk(min(count, len(candidates)))
    parents, tokens = best.indices // log_probs.shape[1], best.indices % log_probs.shape[1]
    return [(total, [*beginnings[parent][1], token], parent)
            for total, parent, token in zip(best.values.tolist(), parents.tolist(), tokens.tolist())]


@dataclass
class TeacherForced:
    """A caption of T tokens, passed through a captioner."""

    ids: list
    log_probs: torch.Tensor  # (T,), of each token, given the ones before
    attention: torch.Tensor  # cross, (layers, heads, T, H, W); [..., t, :, :] of t's prediction sums to 1


@torch.no_grad()
def teacher_force(model, memory, captions, tokenizer):
    """Pass captions, ids without the start token, through a CATR, one a photo: a list of TeacherForced.

    Each position attends to the ones before it alone: for a caption of the model's own these are the
    probabilities and maps of its search, row by row.
    """
    tokens = padded([[tokenizer.start, *ids] for ids in captions]).to(memory.features.device)
    logits, maps = model.decode(tokens[:, :-1], model.begin(memory), with_maps=True)
    log_probs = logits.float().log_softmax(2).gather(2, tokens[:, 1:, None])[:, :, 0].cpu()
    maps = torch.stack(maps).cpu()
    if not all(log_probs[i, :len(ids)].isfinite().all() for i, ids in enumerate(captions)):
        raise BadInput("the captioner gives probabilities that are not finite: take another --checkpoint")
    return [TeacherForced(list(ids), log_probs[i, :len(ids)],
                          maps[:, i, :, :len(ids), :height * width].unflatten(-1, (height, width)))
            for i, (ids, (height, width)) in enumerate(zip(captions, memory.grids))]


def padded(captions):
    """Lists of ids as one tensor (B, T), padded at the end."""
    return pad_sequence([torch.tensor(ids) for ids in captions], True, Tokenizer.PAD)


def collate(items):
    """A batch to train on, of pairs (photo, ids from start to end): [list of photos, ids (B, T)]."""
    photos, captions = zip(*items)
    return [list(photos), padded(captions)]


def token_losses(logits, ids):
    """(loss, accuracy), each the sum over captions of the mean over their tokens; padding does not count.

    `logits` (B, T - 1, V) are those of what follows each token but the last of `ids` (B, T).
    """
    targets = ids[:, 1:]
    counted = targets != Tokenizer.PAD
    each = F.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none") * counted
    right = (logits.argmax(2) == targets) & counted
    length = counted.sum(1).clamp(min=1)
    return (each.sum(1) / length).sum(), (right.sum(1) / length).sum()


def check_limits(model, max_tokens, layer):
    """Raise BadInput for more tokens than a CATR has positions, and for a layer that it does not have."""
    config = model.config
    if max_tokens > config.positions:
        raise BadInput(f"--max-tokens {max_tokens}: this captioner has positions for {config.positions}")
    if not -config.decoder_layers <= layer < config.decoder_layers:
        raise BadInput(f"--layer {layer}: the decoder has {config.decoder_layers}, counted from 0")
