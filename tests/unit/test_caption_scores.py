import math

import pytest

from interpret.caption_scores import score

CAPTIONS = ["a red star above two blue rings", "two red stars above a blue ring",
            "a red heart next to a cross", "a white arrow next next to two rings"]
REFERENCES = ["a red star above two blue rings", "a red star above two blue rings",
              "a red heart next to two crosses", "a white arrow next to two rings"]


def bleu4(captions, references):
    """Papineni et al. 2002, with one reference each: brevity times the mean of the precisions."""
    precisions = []
    for n in (1, 2, 3, 4):
        matched = total = 0
        for texts in zip(captions, references):
            one, other = ([tuple(words[i:i + n]) for i in range(len(words) - n + 1)]
                          for words in map(str.split, texts))
            matched += sum(min(one.count(gram), other.count(gram)) for gram in set(one))
            total += len(one)
        precisions.append(matched / total)
    lengths = [sum(len(text.split()) for text in texts) for texts in (captions, references)]
    brevity = min(1, math.exp(1 - lengths[1] / lengths[0]))
    return 100 * brevity * math.exp(sum(map(math.log, precisions)) / 4)


def test_the_score_is_that_of_the_paper():
    exact, bleu, _ = score(CAPTIONS, [[text] for text in REFERENCES], str.split)
    assert exact == 1 and 0 < bleu < 100 and bleu == pytest.approx(bleu4(CAPTIONS, REFERENCES), abs=0.01)
    assert score(REFERENCES, [[text] for text in REFERENCES], str.split)[:2] == (4, pytest.approx(100))


def test_any_reference_counts_and_each_caption_may_have_another_number_of_them():
    exact, bleu, _ = score(CAPTIONS, [[other, one] for one, other in zip(CAPTIONS, REFERENCES)], str.split)
    assert (exact, bleu) == (4, pytest.approx(100))
    uneven = [[REFERENCES[0]], [REFERENCES[1], CAPTIONS[1]], [REFERENCES[2]], [REFERENCES[3]]]
    exact, bleu, _ = score(CAPTIONS, uneven, str.split)
    assert exact == 2 and bleu > score(CAPTIONS, [[text] for text in REFERENCES], str.split)[1] + 1


def test_words_are_compared_as_they_are_split():
    assert score(["A star."], [["a star ."]], lambda text: text.lower().replace(".", " .").split())[0] == 1
