"""WordPiece tokens as words again, without the tokenizers library, which a page of captions does not need."""

CONTINUATION = "##"


def words_of(tokens):
    """Which tokens make up each word, as lists of their indices: `a ski ##s` is [0], [1, 2]."""
    words = []
    for i, token in enumerate(tokens):
        if not words or not token.startswith(CONTINUATION):
            words.append([])
        words[-1].append(i)
    return words


def joined(tokens):
    """The word that consecutive tokens make up."""
    return tokens[0] + "".join(token.removeprefix(CONTINUATION) for token in tokens[1:])
