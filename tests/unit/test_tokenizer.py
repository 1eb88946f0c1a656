import random
import re

import pytest

from common.errors import BadInput
from models.tokenizer import Tokenizer
from models.wordpieces import joined, words_of
from tests.helpers.plain_catr import made_up

SENTENCES = ["a man skis down a snowy hill.", "two dogs, one black and one white, play with a frisbee",
             "an elderly woman is holding an umbrella in the rain!"]


def test_words_and_pieces():
    tokenizer = Tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cafe", "ski", "##s", "##ing", ".", "["])
    assert tokenizer.encode("A ski skis, skiing. Café") == [4, 6, 6, 7, 1, 6, 8, 9, 5]
    assert tokenizer.encode("[SEP]")[0] == 10 and tokenizer.end not in tokenizer.encode("a [SEP]")
    assert tokenizer.tokens([4, 6, 7]) == ["a", "ski", "##s"]
    assert words_of(["a", "ski", "##s", "##s", "."]) == [[0], [1, 2, 3], [4]] and words_of(["##s",
                                                                                            "a"]) == [[0],
                                                                                                      [1]]
    assert joined(["ski", "##s", "##s"]) == "skiss" and joined(["a"]) == "a"
    assert tokenizer.text([2, 4, 6, 7, 3, 0, 0]) == "a skis"


@pytest.mark.parametrize("content, complaint", [
    (b"[PAD]\n[UNK]\n[CLS]\na\n", r"has no \[SEP\]"),
    (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nrain\nrain\n", "'rain' twice"),
    (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nsn\xf8\n", "not UTF-8"),
    (b"[UNK]\n[PAD]\n[CLS]\n[SEP]\na\n", r"does not begin with \[PAD\]"),
    (None, "does not exist"),
])
def test_what_is_no_vocabulary_is_bad_input(tmp_path, content, complaint):
    path = tmp_path / "vocab.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInput, match=complaint) as error:
        Tokenizer.from_file(path)
    assert str(path) in str(error.value)


def test_a_byte_order_mark_is_not_part_of_the_first_token(tmp_path):
    (tmp_path / "vocab.txt").write_bytes(b"\xef\xbb\xbf[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n")
    assert Tokenizer.from_file(tmp_path / "vocab.txt").vocabulary == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a"]


def test_the_share_of_unknown_words_is_said_and_refused_where_it_is_most(capsys):
    tokenizer = Tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "ski", "##s", "."])
    tokenizer.check_captions(["A ski, skis !", "a a"], "train")
    assert capsys.readouterr().err == "", "punctuation does not count"
    tokenizer.check_captions(["a man skis.", "a man, a-zebra skis."], "train")
    assert capsys.readouterr().err == ("note: 3 of 8 words in the captions of train (37.5%) are not in the "
                                       "vocabulary, such as man, zebra: each counts as [UNK]\n")
    tokenizer.check_captions(["a man"], "train")  # half of them is not most
    for texts in (["a man walks"], ["แมวนั่งบนเสื่อ."]):
        with pytest.raises(BadInput, match="such as .*: take a captioner whose vocabulary"):
            tokenizer.check_captions(texts, "train")


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_vocabulary_file_has_one_token_a_line(tmp_path, ending):
    path = tmp_path / "vocab.txt"
    tokens = [*made_up(6), "\u2028"]  # a character at which str.splitlines splits
    for last in ("", ending):
        path.write_bytes((ending.join(tokens) + last).encode())
        assert Tokenizer.from_file(path).vocabulary == tokens


def word_piece(text, vocabulary):
    """Ids by the rules: split at spaces and punctuation, then take the longest piece that a word begins
    with."""
    ids = []
    for word in re.findall(r"[a-z0-9]+|[^a-z0-9\s]", text.lower()):
        pieces, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = ("##" if start else "") + word[start:end]
                if piece in vocabulary:
                    pieces.append(vocabulary[piece])
                    break
            else:
                pieces, end = [vocabulary["[UNK]"]], len(word)
            start = end
        ids += pieces
    return ids


@pytest.mark.real_data
def test_tokens_of_the_real_vocabulary(real_data):
    path = real_data / "bert-base-uncased" / "vocab.txt"
    tokenizer = Tokenizer.from_file(path)
    assert len(tokenizer.vocabulary) == 30522
    assert (tokenizer.start, tokenizer.end, tokenizer.unknown) == (101, 102, 100)
    assert tokenizer.tokens(tokenizer.encode("skis")) == ["ski", "##s"]
    for sentence in SENTENCES:
        assert tokenizer.text([101, *tokenizer.encode(sentence), 102]) == sentence

    vocabulary = {token: i for i, token in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1])}
    source = random.Random(0)
    letters = [token for token in vocabulary if re.fullmatch(r"(##)?[a-z0-9]+", token)]
    for _ in range(200):
        words = []
        for _ in range(source.randint(1, 12)):
            pieces = source.choices(letters, k=source.choice([1, 1, 1, 2, 3]))
            words += [source.choice(["", "", "(", "'"]) + "".join(piece.removeprefix("##")
                                                                  for piece in pieces)
                      + source.choice(["", "", "", ",", ".", "-", "!?", "s"])]
        sentence = source.choice([" ", "  "]).join(words)
        assert tokenizer.encode(sentence) == word_piece(sentence, vocabulary), sentence


def test_a_long_caption_is_cut_and_ended():
    tokenizer = Tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog"])
    assert tokenizer.caption("a dog", 40) == [4, 5, 3]
    assert tokenizer.caption("dog " * 100, 40) == [5] * 39 + [3], "as many tokens as positions"
