import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from common.errors import BadInput
from models import catr, decoding
from models.tokenizer import Tokenizer
from tests.helpers import plain_catr
from tests.helpers.plain_catr import made_up

SIZES = [(61, 80), (96, 128), (128, 40)]  # height and width of preprocessed photos



BERT = made_up(30522, unknown=100, start=101, end=102)


@torch.no_grad()
def random_weights(model):
    """Nothing is zero or neutral, and the tokens of a caption depend on the photo and on the tokens
    before."""
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith("running_mean"):
            tensor.normal_(0, 0.1)
        elif name.endswith("bias"):
            tensor.normal_(0, 0.1)
        elif "embeddings.weight" in name:
            tensor.normal_(0, 2 if "position" in name else 1)
        elif tensor.dim() == 1:  # of a norm; a block's last one adds to the block's input
            tensor.uniform_(0.1, 0.3) if re.search(r"layer\d.*bn3", name) else tensor.uniform_(0.7, 1.3)
        else:  # uniform, since that is drawn faster
            gain = 1.4 if "in_proj_weight" in name else 2 if "mlp" in name else 1
            limit = gain * (3 / tensor[0].numel()) ** 0.5
            tensor.uniform_(-limit, limit)
    return model.eval()


def random_model(config, seed=0):
    torch.manual_seed(seed)
    with torch.device("meta"):  # not to draw twice
        model = catr.CATR(config)
    return random_weights(model.to_empty(device="cpu"))


def small_model(seed, vocabulary=30):
    return random_model(replace(catr.small_config(vocabulary), encoder_layers=2, decoder_layers=2), seed)


def plain_of(model):
    """The oracle with the weights of a model; of the small size, whose ResNet is not torchvision's, with its
    body."""
    config = model.config
    body = None if config.pretrained_backbone else model.backbone[0].body
    with torch.device("meta"):
        plain = plain_catr.PlainCATR(
            config.vocabulary, config.width, config.heads, config.encoder_layers, config.decoder_layers,
            config.feedforward, config.head_width, config.positions, body, model.input_proj.in_channels,
            config.blocks)
    plain.load_state_dict(model.state_dict(), strict=True, assign=True)
    return plain


def random_photo(height, width, seed):
    """A preprocessed photo: smooth, so that its parts differ, and with noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 3, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    return (smooth + 0.3 * torch.randn(3, height, width, generator=generator)).clamp(-1, 1)


@torch.no_grad()
def captions_of(model, photos, tokenizer, max_tokens, beam=1):
    memory = model.encode(photos)
    return decoding.teacher_force(model, memory, decoding.search(model, memory, tokenizer, max_tokens, beam),
                                  tokenizer)


def check_close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def check_greedy(model, plain, photo, tokenizer, max_tokens, length):
    """The caption, its log-probabilities and all maps are those of the oracle. Returns the ids."""
    ids, logits, maps = plain_catr.greedy(plain, photo, tokenizer.start, tokenizer.end, max_tokens, length)
    forced, = captions_of(model, [photo], tokenizer, max_tokens)
    assert forced.ids == ids
    assert forced.attention.shape == (model.config.decoder_layers, model.config.heads, len(ids),
                                       *grid_of(photo))
    check_close(forced.attention, maps)
    check_close(forced.log_probs, logits.log_softmax(1)[range(len(ids)), ids], 1e-4)
    return ids


def check_batch(model, photos, tokenizer, max_tokens, beam):
    """Photos of different sizes in a batch are read as each alone."""
    batch = captions_of(model, photos, tokenizer, max_tokens, beam)
    for photo, found in zip(photos, batch, strict=True):
        alone, = captions_of(model, [photo], tokenizer, max_tokens, beam)
        assert found.ids == alone.ids
        assert found.attention.shape[2:] == (len(found.ids), *grid_of(photo))
        check_close(found.attention, alone.attention)
        check_close(found.log_probs, alone.log_probs, 1e-4)
        check_close(found.attention.sum((-2, -1)), torch.ones(found.attention.shape[:3]))


def grid_of(photo):
    return tuple(math.ceil(side / 16) for side in photo.shape[1:])


def late_end(model, photo, max_tokens):
    """A tokenizer whose end token is the one that comes up latest in the greedy caption, and how many come
    before."""
    never = Tokenizer(made_up(model.config.vocabulary))
    never.end = -1
    ids = captions_of(model, [photo], never, max_tokens)[0].ids
    end = max((i for i in ids if i > 2), key=ids.index)
    return Tokenizer(made_up(model.config.vocabulary, end=end)), ids.index(end)


# The network ------------------------------------------------------------------------------------------------


def test_names_and_shapes_are_those_of_the_public_checkpoint():
    with torch.device("meta"):
        model, plain = catr.CATR(catr.Config()), plain_catr.PlainCATR()
    state = model.state_dict()
    expected = dict(plain_catr.expected_keys())
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected and len(expected) == 716
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == 84.2
    assert {name: tuple(tensor.shape) for name, tensor in plain.state_dict().items()} == expected


def test_the_full_size_equals_the_oracle():
    model = random_model(catr.Config())
    photo, tokens = random_photo(96, 128, 0), [101, 2000, 7, 30521, 5, 102, 100]
    expected, _ = plain_of(model)(photo, tokens, 128)
    with torch.no_grad():
        logits = model([photo], torch.tensor([tokens]))[0]
    check_close(logits, expected, 1e-5 * expected.abs().max().item())
    assert expected.std(1).min() > 0.1 and (expected[1:] - expected[:-1]).std(1).min() > 0.1


def test_captions_with_its_kind_of_backbone_equal_the_oracle_and_do_not_depend_on_the_batch():
    """Bottlenecks and frozen batch norm, in fewer blocks and layers; the oracle pads captions, as the public
    code."""
    config = replace(catr.Config(), vocabulary=200, encoder_layers=2, decoder_layers=2, feedforward=256,
                     blocks=(1, 1, 2, 1))
    model, tokenizer = random_model(config, seed=2), Tokenizer(made_up(200))
    photos = [random_photo(112, 149, 1), random_photo(96, 64, 2)]
    ids = check_greedy(model, plain_of(model), photos[0], tokenizer, max_tokens=8, length=128)
    assert len(set(ids)) > 3
    check_batch(model, photos, tokenizer, max_tokens=8, beam=1)


def test_captions_of_the_small_size_equal_the_oracle():
    model = small_model(1)
    plain = plain_of(model)
    for i, size in enumerate(SIZES):
        photo = random_photo(*size, i)
        tokenizer, before = late_end(model, photo, 12)
        ids = check_greedy(model, plain, photo, tokenizer, 12, model.config.positions)
        assert len(ids) == before + 1 and ids[-1] == tokenizer.end


def test_a_caption_is_cut_at_the_most_tokens():
    model, photo = small_model(1), random_photo(*SIZES[0], 0)
    tokenizer, before = late_end(model, photo, 12)
    whole = captions_of(model, [photo], tokenizer, 12)[0].ids
    assert before >= 3 and whole[-1] == tokenizer.end
    for most in (1, before - 1, before):
        assert captions_of(model, [photo], tokenizer, most)[0].ids == whole[:most]
    assert all(len(one.ids) == 2 for one in captions_of(model, [photo], Tokenizer(made_up(30)), 2, beam=3))


@pytest.mark.parametrize("beam", [1, 3])
def test_the_batch_does_not_matter(beam):
    model = small_model(1)
    photos = [random_photo(*size, i) for i, size in enumerate([*SIZES, SIZES[0]])]
    for tokenizer in (Tokenizer(made_up(30)), late_end(model, photos[1], 12)[0]):
        check_batch(model, photos, tokenizer, 12, beam)


@pytest.mark.parametrize("seed", range(2))
def test_beam_search_equals_the_plain_one(seed):
    model, photo = small_model(seed), random_photo(*SIZES[0], seed)
    plain = plain_of(model)
    first = plain(photo, [2])[0][-1]
    first[:3] = -torch.inf
    second = first.topk(2).indices[1].item()  # as the end token it takes a place of the beam from the start
    for tokenizer in (late_end(model, photo, 6)[0], Tokenizer(made_up(30, end=second))):
        captions = [captions_of(model, [photo], tokenizer, 7, beam)[0].ids for beam in (1, 2, 3)]
        for beam, ids in enumerate(captions, start=1):
            assert ids == plain_catr.beam_search(plain, photo, tokenizer.start, tokenizer.end, 7, beam)
        assert captions[0] == plain_catr.greedy(plain, photo, tokenizer.start, tokenizer.end, 7)[0]


@pytest.mark.parametrize("seed", range(2))
def test_a_beam_wider_than_all_captions_finds_the_best_of_all(seed):
    model, photo, tokenizer = small_model(seed, 6), random_photo(32, 32, seed), Tokenizer(made_up(6))
    mean, best = plain_catr.best_of_all(plain_of(model), photo, tokenizer.start, tokenizer.end, 3)
    forced, = captions_of(model, [photo], tokenizer, 3, beam=6 ** 3)
    assert forced.ids == best
    assert forced.log_probs.mean().item() == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize("height, width, channels", [(3, 5, 16), (2, 1, 12), (14, 19, 256)])
def test_sine_positions_equal_a_scalar_loop(height, width, channels):
    found = catr.sine_positions(height, width, channels)
    half = channels // 2
    expected = torch.empty(height * width, channels)
    for row in range(height):
        for column in range(width):
            for k in range(channels):
                count, last = (row + 1, height) if k < half else (column + 1, width)
                angle = count / (last + 1e-6) * 2 * math.pi / 10000 ** (k % half // 2 * 2 / half)
                expected[row * width + column, k] = math.cos(angle) if k % 2 else math.sin(angle)
    check_close(found, expected, 2e-6)


# Photos -----------------------------------------------------------------------------------------------------


def test_sizes_are_cut_off_as_in_the_public_code():
    assert catr.resized((550, 400), 299) == (298, 217)  # 550 * (299 / 550) is a little less than 299
    assert catr.resized((400, 550), 299) == (217, 298)
    assert catr.resized((299, 224), 299) == (299, 224)
    assert catr.resized((100, 50), 299) == (299, 149)


def test_preprocessing_equals_numpy():
    pixels = np.random.default_rng(0).integers(0, 256, (41, 73, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels)
    unchanged = catr.preprocess(photo, replace(catr.Config(), longer_side=73))
    check_close(unchanged, torch.tensor(pixels / 127.5 - 1, dtype=torch.float32).permute(2, 0, 1), 1e-6)
    smaller = np.asarray(photo.resize((50, 28), Image.Resampling.BICUBIC))
    found = catr.preprocess(photo, replace(catr.Config(), longer_side=50))
    check_close(found, torch.tensor(smaller / 127.5 - 1, dtype=torch.float32).permute(2, 0, 1), 1e-6)


@pytest.mark.parametrize("config", [replace(catr.Config(), blocks=(1, 2, 2, 2), channels=(8, 8, 8, 8)),
                                    catr.small_config(6)], ids=["bottlenecks", "small"])
def test_a_cell_lies_where_its_gradient_is_centred(config):
    config = replace(config, longer_side=512)
    body = catr.resnet(config).eval()
    with torch.no_grad():
        for module in body.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.fill_(1 / module.weight[0].numel())
            if "Norm" in type(module).__name__:
                module.forward = lambda x: x
            if isinstance(module, nn.MaxPool2d):  # of equal values it would pick the first
                module.forward = nn.AvgPool2d(module.kernel_size, module.stride, module.padding).forward
    image = torch.ones(1, 3, 448, 512, requires_grad=True)
    features = body(image)
    grid = tuple(features.shape[-2:])
    for row, column in ((13, 16), (14, 15)):
        gradient, = torch.autograd.grad(features[0, :, row, column].sum(), image, retain_graph=True)
        weight = gradient[0].sum(0)
        assert weight.min() >= 0
        assert not weight[[0, -1]].any() and not weight[:, [0, -1]].any()  # an inner cell: nothing is cut off
        x = (weight.sum(0) * (torch.arange(512) + 0.5)).sum() / weight.sum()
        y = (weight.sum(1) * (torch.arange(448) + 0.5)).sum() / weight.sum()
        for scale in (1, 3):
            left, top, right, bottom = catr.grid_box((512 * scale, 448 * scale), grid, config)
            assert left + (column + 0.5) * (right - left) / grid[1] == pytest.approx(x.item() * scale,
                                                                                     abs=0.02)
            assert top + (row + 0.5) * (bottom - top) / grid[0] == pytest.approx(y.item() * scale, abs=0.02)


# Checkpoints ------------------------------------------------------------------------------------------------


def test_the_public_checkpoint_opens(tmp_path):
    vocab, path = tmp_path / "vocab.txt", tmp_path / "catr.pth"
    vocab.write_text("\n".join(BERT) + "\n")
    state = {name: torch.tensor(i / 1000).expand(shape)  # one number each, so that the file is small
             for i, (name, shape) in enumerate(plain_catr.expected_keys())}
    torch.save({"model": state}, path)
    model, tokenizer = catr.open_captioner(path, vocab)
    assert not model.training and (tokenizer.start, tokenizer.end, tokenizer.unknown) == (101, 102, 100)
    opened = model.state_dict()
    for i, (name, shape) in enumerate(plain_catr.expected_keys()):
        tensor = opened[name]
        assert tensor.shape == shape and tensor[(-1,) * len(shape)].item() == pytest.approx(i / 1000)


@pytest.mark.parametrize("wrap", [
    lambda state: state, lambda state: {"state_dict": state}, lambda state: {"model_state_dict": state},
    lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
    lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
    lambda state: {"state_dict": {f"model.{key}": value for key, value in state.items()}},
])
def test_its_weights_are_taken_from_any_container_and_under_any_prefix(tmp_path, monkeypatch, wrap):
    small, vocab, path = small_model(0), tmp_path / "vocab.txt", tmp_path / "catr.pth"
    monkeypatch.setattr(catr, "Config", lambda: small.config)  # of the size of the public one: see above
    vocab.write_text("\n".join(made_up(30)))
    torch.save(wrap(small.state_dict()), path)
    opened = catr.open_captioner(path, vocab)[0].state_dict()
    assert opened.keys() == small.state_dict().keys()
    assert all(torch.equal(opened[key], value) for key, value in small.state_dict().items())


def test_a_key_that_does_not_fit_is_named(tmp_path):
    model, key = small_model(0), "transformer.decoder.layers.1.multihead_attn.out_proj.weight"
    state = {name: value for name, value in model.state_dict().items() if name != key}
    torch.save({**catr.checkpoint_fields(model.config, made_up(30)), "state_dict": state},
               tmp_path / "last.pt")
    with pytest.raises(BadInput, match=re.escape(f"last.pt does not fit the captioner ({key} is missing): ")):
        catr.open_captioner(tmp_path / "last.pt")


def test_a_checkpoint_of_our_own_opens_as_it_was(tmp_path):
    model, path, photo = small_model(0), tmp_path / "last.pt", random_photo(*SIZES[0], 0)
    torch.save({**catr.checkpoint_fields(model.config, made_up(30)), "state_dict": model.state_dict()}, path)
    opened, tokenizer = catr.open_captioner(path)
    assert opened.config == model.config and tokenizer.vocabulary == made_up(30)
    first, second = (captions_of(each, [photo], tokenizer, 5)[0] for each in (model, opened))
    assert first.ids == second.ids and torch.equal(first.attention, second.attention)
    other = tmp_path / "vocab.txt"
    other.write_text("\n".join(made_up(31)))
    with pytest.raises(BadInput, match="leave --vocab out"):
        catr.open_captioner(path, other)


def test_files_that_are_no_captioners_are_bad_input(tmp_path):
    path, vocab = tmp_path / "file.pt", tmp_path / "vocab.txt"
    vocab.write_text("\n".join(made_up(30)))
    embedding = {"transformer.embeddings.word_embeddings.weight": torch.zeros(31, 256)}
    for content, names, complaint in (({"arch": "test_vit"}, None, "a classifier, test_vit"),
                                      ([1, 2], None, "not a captioner"),
                                      ({"model": embedding}, None, "--vocab"),
                                      ({"model": embedding}, vocab, "30 tokens and .* 31")):
        torch.save(content, path)
        with pytest.raises(BadInput, match=complaint):
            catr.open_captioner(path, names)
