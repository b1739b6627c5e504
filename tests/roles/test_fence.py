"""Nothing inside a fence can end it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_steer.roles.fence import TAG_CHARS, fence_tag, fenced, fenced_blocks

TAG = fence_tag(b"key", "seed")


def test_the_tag_depends_on_key_and_seed_only():
    assert fence_tag(b"key", "seed") == TAG
    assert len({TAG, fence_tag(b"key", "seed2"), fence_tag(b"kez", "seed")}) == 3
    assert len(TAG) == TAG_CHARS and TAG.isalnum() and TAG.lower() == TAG


def test_an_empty_key_is_refused():
    with pytest.raises(ValueError, match="guessed"):
        fence_tag(b"", "seed")


@given(
    st.lists(
        st.sampled_from([TAG, TAG.upper(), "--- end student answer ", "--- begin planned question ", "\n", "x"]),
        max_size=12,
    )
)
def test_whatever_stands_inside_one_block_comes_out(pieces):
    text = "".join(pieces)
    block = fenced(TAG, "student answer", text)
    found = list(fenced_blocks(TAG).finditer(block + fenced(TAG, "user question", "q")))
    assert [m["label"] for m in found] == ["student answer", "user question"]
    assert block.lower().count(TAG) == 2  # its own two lines
    assert found[0]["body"].replace("·", "").lower() == text.lower()
