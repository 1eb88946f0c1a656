"""WordPiece tokens: the vocabulary of BERT or one of our own, through the tokenizers library.

A word that is not in it is split into pieces that are; all but the first begin with `##`: `skis` is `ski` and
`##s`. A word that cannot be split so is `[UNK]`.
"""

from collections import Counter
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from common.cli import note
from common.errors import BadInput
from common.files import refuse_missing
from models.wordpieces import CONTINUATION


class Tokenizer:
    """Text to ids and back. Captions are lower case, accents are dropped, punctuation is a token of its own.

    `vocabulary` lists the tokens by id, the first `[PAD]`; errors name `source`. `start`, `end` and `unknown`
    are the ids of `[CLS]`, before a caption, `[SEP]`, after it, and `[UNK]`.
    """

    PAD = 0

    def __init__(self, vocabulary, source="the vocabulary"):
        if not isinstance(vocabulary, list) or not all(isinstance(token, str) for token in vocabulary):
            raise BadInput(f"{source} holds no list of tokens: copy it again")
        self.vocabulary = list(vocabulary)
        ids = {token: i for i, token in enumerate(self.vocabulary)}
        special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
        if missing := [token for token in special if token not in ids]:
            raise BadInput(f"{source} is no WordPiece vocabulary, it has no {missing[0]}: pass one such as "
                           "the vocab.txt of bert-base-uncased")
        if twice := [token for i, token in enumerate(self.vocabulary) if ids[token] != i]:
            raise BadInput(f"{source} has the token {twice[0]!r} twice: copy it again")
        if ids["[PAD]"] != self.PAD:
            raise BadInput(f"{source} does not begin with [PAD], which must have the id 0: copy it again")
        _, self.start, self.end, self.unknown = (ids[token] for token in special)
        self._library = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
        self._library.normalizer = normalizers.BertNormalizer(lowercase=True)
        self._library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._library.decoder = decoders.WordPiece(prefix=CONTINUATION)
        self._library.add_special_tokens(special)
        self._library.encode_special_tokens = True  # a caption that holds "[SEP]" means the letters

    @classmethod
    def from_file(cls, path):
        """Of a vocab.txt, one token a line. Raises BadInput for a missing file and for another kind."""
        path = Path(path)
        refuse_missing(path, "a vocab.txt")
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadInput(f"{path} is not UTF-8 text: name a vocab.txt") from error
        # not splitlines: it splits at characters that are tokens of BERT
        return cls([line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")], path)

    def encode(self, text):
        """The ids of a text, without start and end."""
        return self._library.encode(_clean(text), add_special_tokens=False).ids

    def caption(self, text, positions):
        """The ids of a text and the end token, `positions` in all at most: a longer text is cut."""
        return [*self.encode(text)[:positions - 1], self.end]

    def words(self, text):
        """The words of a text and its punctuation, before they are looked up in the vocabulary."""
        normal = self._library.normalizer.normalize_str(_clean(text))
        return [word for word, _ in self._library.pre_tokenizer.pre_tokenize_str(normal)]

    def check_captions(self, texts, source):
        """Note the share of the words of texts, in `source`, that are unknown; BadInput where it is most.

        Punctuation does not count.
        """
        words = Counter()
        for part, count in Counter(part for text in texts for part in text.split()).items():
            for word in filter(lambda word: any(map(str.isalnum, word)), self.words(part)):
                words[word] += count
        unknown = Counter({word: n for word, n in words.items() if self.unknown in self.encode(word)})
        if not unknown:
            return
        examples = ", ".join(word for word, _ in unknown.most_common(3))
        message = (f"{unknown.total():,} of {words.total():,} words in the captions of {source} "
                   f"({unknown.total() / words.total():.1%}) are not in the vocabulary, such as {examples}: ")
        if unknown.total() > words.total() / 2:
            raise BadInput(message + "take a captioner whose vocabulary (--vocab) is of their language")
        note(message + "each counts as [UNK]")

    def tokens(self, ids):
        """The tokens of ids."""
        return [self.vocabulary[i] for i in ids]

    def text(self, ids):
        """Ids as text: pieces joined, start, end and padding left out."""
        words = [i for i in ids if i not in (self.PAD, self.start, self.end)]
        return self._library.decode(words, skip_special_tokens=False)


def _clean(text):
    """Half an emoji, or a byte that is no text, as a question mark: the library takes whole characters."""
    return text.encode("utf-8", "replace").decode()
