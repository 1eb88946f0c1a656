"""Captions for photos: found by greedy or beam search, and read again for what each token looked at."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from common.errors import BadInput
from models.catr import preprocess
from models.tokenizer import Tokenizer


@dataclass
class Reading:
    """A caption of T tokens as a captioner reads it.

    log_probs (T,) is the log-probability of each token, given the ones before. attention (layers, heads, T, H, W) is the
    cross-attention of each decoder layer: [..., t, :, :], which sums to 1, belongs to the query that predicts token t.
    """

    ids: list
    log_probs: torch.Tensor
    attention: torch.Tensor


@torch.no_grad()
def encode(model, photos):
    """RGB PIL images as the Memory of a CATR, on its device.

    Raises BadInput for a captioner whose weights give values that are not finite.
    """
    device = next(model.parameters()).device
    memory = model.encode([preprocess(photo, model.config).to(device) for photo in photos])
    if not memory.features.isfinite().all():
        raise BadInput("the captioner gives values that are not finite: its weights are of no use, take another --checkpoint")
    return memory


@torch.inference_mode()  # many small operations, for which no_grad does more
def search(model, memory, tokenizer, max_tokens, beam=1):
    """The captions that a CATR finds for the photos of a Memory: a list of lists of ids, without the start token.

    Each ends with the end token, unless it has `max_tokens` tokens. Beam search keeps the `beam` most probable beginnings;
    one that has ended keeps its place. The caption is that with the highest mean log-probability of its tokens. With 1 it
    is greedy: the most probable token each time.
    """
    live = [[(0.0, [])] for _ in memory.grids]  # for each photo: (log-probability, ids)
    done = [[] for _ in memory.grids]  # (mean log-probability, ids)
    cache = model.begin(memory)
    for _ in range(max_tokens):
        last = [ids[-1] if ids else tokenizer.start for photo in live for _, ids in photo]
        logits = model.decode(torch.tensor(last, device=memory.features.device)[:, None], cache)[:, 0]
        log_probs = logits.double().log_softmax(1).cpu()
        rows, chosen = 0, []
        for photo, ended in zip(live, done):
            if not photo:
                continue
            totals = torch.tensor([total for total, _ in photo], dtype=torch.float64)
            candidates = (totals[:, None] + log_probs[rows:rows + len(photo)]).flatten()
            best = candidates.topk(min(beam - len(ended), len(candidates)))
            going_on = []
            for total, index in zip(best.values.tolist(), best.indices.tolist()):
                row, token = divmod(index, log_probs.shape[1])
                ids = [*photo[row][1], token]
                if token == tokenizer.end:
                    ended.append((total / len(ids), ids))
                else:
                    going_on.append((total, ids))
                    chosen.append(rows + row)
            rows += len(photo)
            photo[:] = going_on
        if not chosen:
            break
        if chosen != list(range(rows)):
            cache.select(torch.tensor(chosen, device=memory.features.device))
    found = [ended + [(total / len(ids), ids) for total, ids in photo] for photo, ended in zip(live, done)]
    return [max(captions, key=lambda caption: caption[0])[1] for captions in found]


@torch.no_grad()
def read(model, memory, captions, tokenizer):
    """What a CATR makes of given captions, one for each photo of a Memory, as a list of Reading.

    `captions` are lists of ids without the start token. Each position sees the ones before it alone, so for a
    caption of the model's own these are the probabilities and maps of its search, row by row.
    """
    tokens = padded([[tokenizer.start, *ids] for ids in captions]).to(memory.features.device)
    logits, maps = model.decode(tokens[:, :-1], model.begin(memory), with_maps=True)
    log_probs = logits.float().log_softmax(2).gather(2, tokens[:, 1:, None])[:, :, 0].cpu()
    maps = torch.stack(maps).cpu()
    if not all(log_probs[i, :len(ids)].isfinite().all() for i, ids in enumerate(captions)):
        raise BadInput("the captioner gives probabilities that are not finite: take another --checkpoint")
    return [Reading(list(ids), log_probs[i, :len(ids)],
                    maps[:, i, :, :len(ids), :height * width].unflatten(-1, (height, width)))
            for i, (ids, (height, width)) in enumerate(zip(captions, memory.grids))]


def padded(captions):
    """Lists of ids as one tensor (B, T), padded at the end."""
    return pad_sequence([torch.tensor(ids) for ids in captions], batch_first=True, padding_value=Tokenizer.PAD)


def collate(items):
    """A batch to train on, of pairs (photo, ids from start to end): [list of photos, ids (B, T)]."""
    photos, captions = zip(*items)
    return [list(photos), padded(captions)]


def token_losses(logits, ids):
    """What training lowers, and how well it goes: (loss, accuracy), the sums over the captions of a batch.

    `logits` (B, T - 1, V) are those of what follows each of the tokens but the last of `ids` (B, T). A caption's loss is the
    mean cross-entropy of its tokens, and its accuracy the share of them that have the highest logit; padding does not count.
    """
    targets = ids[:, 1:]
    counted = targets != Tokenizer.PAD
    each = F.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none") * counted
    right = (logits.argmax(2) == targets) & counted
    length = counted.sum(1).clamp(min=1)
    return (each.sum(1) / length).sum(), (right.sum(1) / length).sum()


def check_limits(model, max_tokens, layer):
    """Raise BadInput for more tokens than a CATR has positions, and for a layer that its decoder does not have."""
    config = model.config
    if max_tokens > config.positions:
        raise BadInput(f"--max-tokens {max_tokens}: this captioner has positions for {config.positions}")
    if not -config.decoder_layers <= layer < config.decoder_layers:
        raise BadInput(f"--layer {layer}: the decoder has {config.decoder_layers}, counted from 0")
