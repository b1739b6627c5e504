"""Which words a verdict is about."""

import hashlib
import json

from bench_runs import dialogue

from verl_steer.bench.judging import said


def test_a_digest_is_of_the_conversation_so_far_as_verdicts_on_disk_name_it():
    played = dialogue("a", 4, replies=["one", "", 'a "quote", \u2028 and \u00e4', "\ud83d\ude00"])
    spoken = [[turn.question, turn.reply] for turn in played.turns]
    assert said(played) == [hashlib.sha256(json.dumps(spoken[:turn]).encode()).hexdigest()[:16] for turn in range(1, 5)]
    assert said(dialogue("b", 2, replies=[])) == []
