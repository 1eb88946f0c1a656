"""How good captions are, against references."""

from itertools import zip_longest

import sacrebleu

from interpret.cider import cider


def score(captions, references, words):
    """How many captions equal one of their references, BLEU-4 over all (0 to 100), and CIDEr (0 to 10).

    `references` has a list for each caption; `words` splits a text into those that are compared.
    """
    captions = [" ".join(words(text)) for text in captions]
    references = [[" ".join(words(text)) for text in texts] for texts in references]
    exact = sum(text in texts for text, texts in zip(captions, references))
    streams = [list(stream) for stream in zip_longest(*references)]  # None where a caption has fewer
    bleu4 = sacrebleu.corpus_bleu(captions, streams, force=True, tokenize="none").score
    return exact, bleu4, cider(captions, references)
