"""CIDEr (Vedantam et al. 2015, arXiv:1411.5726), in the form of the COCO server: CIDEr-D, section 6.3."""

import math
from collections import Counter
from statistics import fmean

LONGEST = 4  # words of an n-gram
SIGMA = 6.0  # words by which lengths may differ


def cider(captions, references):
    """The mean over captions of CIDEr-D, 0 to 10; each has a list of references. Words are between spaces.

    For n from 1 to 4, with g the vector of a text's n-grams, each counted and weighed by the logarithm of all
    photos / those with it in a reference, and l the text's length: the mean over n and references s of
    10 exp(-(l(c) - l(s))^2 / (2 SIGMA^2)) min(g(c), g(s)) g(s) / (|g(c)| |g(s)|).
    """
    grams = [[_ngrams(text) for text in texts] for texts in references]
    photos_with = Counter(gram for texts in grams for gram in set().union(*texts))

    def vectors(counts):
        weighed = [{} for _ in range(LONGEST)]
        for gram, count in counts.items():
            weighed[len(gram) - 1][gram] = count * math.log(len(captions) / max(1, photos_with[gram]))
        return weighed

    return fmean(fmean(_similarity(ours, vectors(ours), theirs, vectors(theirs)) for theirs in texts)
                 for ours, texts in zip(map(_ngrams, captions), grams, strict=True))


def _ngrams(text):
    words = text.split()
    return Counter(tuple(words[i:i + n]) for n in range(1, LONGEST + 1) for i in range(len(words) - n + 1))


def _similarity(ours, our_vectors, theirs, their_vectors):
    # as the length the server takes the number of pairs of words
    length, other_length = (sum(count for gram, count in counts.items() if len(gram) == 2)
                            for counts in (ours, theirs))
    cosines = []
    for one, other in zip(our_vectors, their_vectors):
        product = sum(min(value, other[gram]) * other[gram] for gram, value in one.items() if gram in other)
        norms = math.hypot(*one.values()) * math.hypot(*other.values())
        cosines.append(product / norms if norms else 0.0)
    return 10 * math.exp(-(length - other_length)**2 / (2 * SIGMA**2)) * fmean(cosines)
