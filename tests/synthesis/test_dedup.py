"""The same row, nearly the same row, and another row."""

import random

import planted
import pytest
from planted import Maker

from verl_steer.data.schemas import Question
from verl_steer.synthesis import dedup
from verl_steer.synthesis.dedup import PERMUTATIONS, RECALL, NearIndex, bands, jaccard, mark, normalise


def marked(texts, images=(), origin=""):
    turns = [Question(text=t, images=images if n == 0 else ()) for n, t in enumerate(texts)]
    return mark("row", "seed", turns, 3, origin)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is this?", "what  is THIS"),
        ("what is\nthis", "“What—is this!”"),
        ("ｗｈａｔ is this", "what is this"),
        ("wh\u200bat is this", "what is this"),
        ("???", "???"),
    ],
)
def test_case_spacing_punctuation_width_and_invisible_signs_do_not_matter(one, other):
    assert normalise(one) == normalise(other)
    assert marked([one]).digest == marked([other]).digest


def test_words_pictures_and_the_order_of_turns_do_matter():
    base = marked(["what is this", "and that"], (planted.picture(1),))
    assert base.digest != marked(["what is this", "and those"], (planted.picture(1),)).digest
    assert base.digest != marked(["what is this", "and that"], (planted.picture(2),)).digest
    assert base.digest != marked(["and that", "what is this"], (planted.picture(1),)).digest
    assert normalise("!!!") != normalise("???")


def test_a_script_without_spaces_has_a_word_a_sign():
    assert normalise("这是什么") == "这 是 什 么"
    assert len(marked(["这是什么东西"]).shingles) == 4


def test_the_similarity_is_the_one_of_plain_sets():
    maker, draw = Maker(0), random.Random(0)
    for _ in range(50):
        one = maker.texts(4)
        other = maker.edited(one, draw.random() / 3)
        assert jaccard(marked(one).shingles, marked(other).shingles) == pytest.approx(planted.jaccard(one, other))


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_the_index_is_laid_out_for_the_recall_it_promises(threshold):
    count, rows = bands(threshold)
    assert count * rows <= PERMUTATIONS and 1 - (1 - threshold**rows) ** count >= RECALL


def test_near_means_at_least_the_threshold_and_nothing_below_it():
    maker, index = Maker(1), NearIndex(0.8)
    found = missed = wrong = 0
    for _ in range(300):
        one = maker.texts(6)
        other = maker.edited(one, 0.04)
        index.add(marked(one), index.signature(marked(one).shingles))
        hit = index.find(marked(other), index.signature(marked(other).shingles), "any")
        if planted.jaccard(one, other) >= 0.8:
            found, missed = found + (hit is not None), missed + (hit is None)
        else:
            wrong += hit is not None
    assert found > 80 and missed <= 0.02 * found and wrong == 0


def test_pictures_decide_only_where_they_are_asked():
    index = NearIndex(0.8)
    first = marked(["a few words about this"], (planted.picture(1),))
    index.add(first, index.signature(first.shingles))
    other = marked(["a few words about this"], (planted.picture(2),))
    bare = marked(["a few words about this"])
    perturbed = marked(["a few words about this"], (planted.picture(3),), origin=planted.picture(1).sha256)
    for row, same in ((other, False), (bare, False), (perturbed, True), (first, True)):
        signature = index.signature(row.shingles)
        assert index.find(row, signature, "any") is first
        assert (index.find(row, signature, "same") is first) == same


def templated(count, tail=8):
    """Rows by one template: 250 words that all share, and a short end of their own."""
    draw = random.Random(5)
    shared = [f"w{draw.randrange(5000)}" for _ in range(250)]
    return [marked([" ".join([*shared, *(f"own{n}x{k}" for k in range(tail))])]) for n in range(count)]


def test_the_first_near_row_ends_the_search_where_any_of_them_will_do(monkeypatch):
    rows, compared = templated(40), []
    real = dedup.jaccard
    monkeypatch.setattr(dedup, "jaccard", lambda *pair: (compared.append(pair), real(*pair))[1])
    index = NearIndex(0.8)
    for row in rows[:20]:
        index.add(row, index.signature(row.shingles))
    found = [index.find(row, index.signature(row.shingles), "any", nearest=False) for row in rows[20:]]
    assert all(row is rows[0] for row in found) and len(compared) == 20
    nearest = index.find(rows[7], index.signature(rows[7].shingles), "any")
    assert nearest is rows[7] and len(compared) == 28, "nothing is nearer than the same"


def test_any_near_row_is_found_exactly_where_a_nearest_one_is():
    maker, index, draw = Maker(2), NearIndex(0.8), random.Random(2)
    several = 0
    for _ in range(150):
        one = maker.texts(6)
        for _ in range(2):
            row = marked(maker.edited(one, 0.02))
            index.add(row, index.signature(row.shingles))
        other = marked(maker.edited(one, draw.choice((0.01, 0.1))))
        signature = index.signature(other.shingles)
        nearest, any_one = (index.find(other, signature, "any", nearest=n) for n in (True, False))
        assert (nearest is None) == (any_one is None)
        if nearest is not None:
            likeness = [jaccard(other.shingles, row.shingles) for row in (nearest, any_one)]
            assert likeness[0] >= likeness[1] >= 0.8
            several += nearest is not any_one
    assert several > 10


def test_rows_of_very_different_lengths_are_not_compared(monkeypatch):
    texts = [" ".join(f"w{n}" for n in range(size)) for size in (200, 300)]
    short, long = (marked([text]) for text in texts)
    index = NearIndex(0.6)
    index.add(short, index.signature(short.shingles))
    signature = index.signature(long.shingles)
    assert index.find(long, signature, "any") is short
    index.threshold = 0.8
    monkeypatch.setattr(dedup, "jaccard", lambda *_: pytest.fail("at most 198 of 298 can be shared"))
    assert index.find(long, signature, "any") is None


def test_without_datasketch_the_message_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[synth\]" in the clone'):
        NearIndex(0.8)
