"""The shared data structure: script lengths, kinds, causes of a cut, image identity."""

import hashlib

import pytest

from verl_steer.dialogue import MAX_TURNS, Cut, ImageRef, Kind, Script, UserTurn


@pytest.mark.parametrize("turns", [0, MAX_TURNS + 1])
def test_a_script_outside_1_to_10_turns_is_refused_by_its_seed(turns):
    with pytest.raises(ValueError, match=rf"seed 'x-7': a script has 1\.\.10 user turns, this one {turns}"):
        Script("x-7", Kind.BENIGN, tuple(UserTurn("q") for _ in range(turns)))


@pytest.mark.parametrize("turns", [1, MAX_TURNS])
def test_a_script_may_have_1_to_10_turns(turns):
    assert len(Script("x", Kind.BENIGN, tuple(UserTurn("q") for _ in range(turns))).turns) == turns


def test_two_of_three_pools_work_towards_harm():
    assert {kind: kind.harmful for kind in Kind} == {Kind.BENIGN: False, Kind.OBFUSCATED: True, Kind.RED_TEAM: True}


def test_the_student_pays_for_its_own_cuts_only():
    assert {cut for cut in Cut if cut.blames_student} == {Cut.STUDENT_LENGTH, Cut.STOPPED}


def test_an_image_is_known_by_its_bytes_and_never_printed():
    image = ImageRef(b"\x89PNG secret")
    assert image.sha256 == hashlib.sha256(b"\x89PNG secret").hexdigest()
    assert image == ImageRef(b"\x89PNG secret") and "secret" not in repr(image)
