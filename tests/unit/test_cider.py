import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocoevalcap.cider.cider import Cider

from datasets.captions import read_captions
from interpret.cider import cider
from models.tokenizer import Tokenizer
from tests.helpers.fuzzing import examples

CAPTIONS, REFERENCES = (st.lists(st.sampled_from("abcd"), min_size=least, max_size=7).map(" ".join)
                        for least in (0, 1))


def of_the_server(captions, references):
    captions = {i: [text] for i, text in enumerate(captions)}
    return Cider().compute_score(dict(enumerate(references)), captions)[0]


@examples(100)
@given(st.lists(st.tuples(CAPTIONS, st.lists(REFERENCES, min_size=1, max_size=3)), min_size=1, max_size=5))
def test_it_is_what_the_coco_server_computes(photos):
    """Whatever the lengths, repeated and missing words, and numbers of references."""
    captions, references = zip(*photos)
    assert cider(captions, references) == pytest.approx(of_the_server(captions, references), abs=1e-9)


@pytest.mark.real_data
def test_so_it_is_of_real_captions(real_data):
    """One of five captions of each photo against the other four."""
    captions = read_captions(real_data / "coco", "val").captions
    words = Tokenizer.from_file(real_data / "bert-base-uncased" / "vocab.txt").words
    captions = [[" ".join(words(text)) for text in texts] for texts in captions]
    one, others = [texts[0] for texts in captions], [texts[1:] for texts in captions]
    found = cider(one, others)
    assert found == pytest.approx(of_the_server(one, others), abs=1e-9) and 0.5 < found < 2


def test_a_caption_like_its_references_alone_has_the_most():
    references = [["a red star", "the red star"], ["two blue rings beside a cross"], ["a heart"]]
    right = cider([texts[0] for texts in references], references)
    assert 0 < cider(["a red ring", "two blue rings", "a heart"], references) < right
    assert cider(["two blue rings beside a cross"], [["two blue rings beside a cross"]]) == 0, \
        "of one photo no word says anything"
    with pytest.raises(ValueError):
        cider(["a heart"], references)
