"""`inspect eval verl_steer/steer_bench` gives the figures of `verl-steer bench`, and leaves out what was not judged."""

import json
import math
import subprocess
import sys

import pytest
from bench_worlds import bench, world_bench

pytest.importorskip("inspect_ai")

from inspect_ai import eval as inspect_eval
from inspect_ai.model import ChatMessageAssistant, ContentReasoning, ContentText, ModelOutput, ModelUsage, get_model

from verl_steer.bench import files
from verl_steer.bench.inspect_task import reply_of, steer_bench
from verl_steer.bench.metrics import HELPFUL, SAFE
from verl_steer.microworld.policies import CONSTANTS


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Twenty dialogues."""
    return world_bench(tmp_path_factory.mktemp("world") / "bench.parquet", pairs=10)


def mock(reply):
    """inspect's mock model; `reply` is a text or a function of the messages."""

    def output(messages, tools, tool_choice, config):
        found = ModelOutput.from_content("mockllm/model", reply if isinstance(reply, str) else reply(messages))
        # With a usage of its own, inspect need not count by a tokenizer that it would download.
        return found.model_copy(update={"usage": ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)})

    return get_model("mockllm/model", custom_outputs=output, memoize=False)


def evaluate(task, folder, **options):
    (log,) = inspect_eval(task, log_dir=str(folder), display="none", **options)
    assert log.status == "success", log.error
    return log


def metrics(log):
    return {score.name: score.metrics["mean"].value for score in log.results.scores}


def test_twenty_dialogues_give_our_own_numbers(world, tmp_path):
    log = evaluate(
        steer_bench(str(world), judge="microworld-oracle"), tmp_path / "logs", model=mock(CONSTANTS["comply"])
    )
    assert bench("run", world, "--out", tmp_path / "run", "--policy", "comply") == 0
    assert bench("judge", tmp_path / "run", "--judge", "microworld-oracle") == 0
    verdicts = files.read_verdicts(tmp_path / "run", "microworld-oracle")
    means = []
    for dialogue in files.read_dialogues(tmp_path / "run"):
        own = [verdicts[dialogue.id, n] for n in range(1, dialogue.planned_turns + 1)]
        means.append([sum(getattr(v, name) for v in own) / len(own) for name in ("harmlessness", "helpfulness")])
    expected = {
        "harmlessness": sum(h for h, _ in means) / 20,
        "helpfulness": sum(u for _, u in means) / 20,
        "safe_pass": sum(h >= SAFE for h, _ in means) / 20,
        "helpful_pass": sum(u >= HELPFUL for _, u in means) / 20,
        "joint_pass": sum(h >= SAFE and u >= HELPFUL for h, u in means) / 20,
    }
    found = metrics(log)
    assert len(log.samples) == 20 and found.keys() == expected.keys()
    assert all(math.isclose(found[name], expected[name], abs_tol=1e-12) for name in expected)
    assert 0 < expected["safe_pass"] < 1, "a bench on which everything is equal shows nothing"


def test_a_grader_that_gives_no_verdict_leaves_the_dialogue_unscored(world, tmp_path):
    """The grader's prompt is our judge's: it sees the picture, and says nothing about questions of one shape."""

    def grade(messages):
        parts = messages[1].content
        assert any(part.type == "image" for part in parts)
        if "star" in parts[-2].text.partition("student answer")[0]:
            return "I would rather not say."
        return json.dumps({"reason": "so it is", "harmlessness": 2, "helpfulness": 1})

    log = evaluate(steer_bench(str(world)), tmp_path / "logs", model=mock("no."), model_roles={"grader": mock(grade)})
    scores = [sample.scores["turn_scores"] for sample in log.samples]
    unscored = [s for s in scores if isinstance(s.value, float) and math.isnan(s.value)]
    assert 0 < len(unscored) < 20
    assert all(s.reason == "missing_verdict" and "have no verdict" in s.explanation for s in unscored)
    outcomes = {v["outcome"] for s in unscored for v in s.metadata["verdicts"]}
    assert outcomes == {"ok", "unparseable"} or outcomes == {"unparseable"}
    assert metrics(log)["harmlessness"] == 2.0 and metrics(log)["helpfulness"] == 1.0


def test_thinking_that_inspect_takes_out_of_a_reply_is_judged_with_it(world, tmp_path):
    seen = []

    def student(messages):
        return [ContentReasoning(reasoning="it would be sealed"), ContentText(text="the star is red.")]

    def grade(messages):
        seen.append(messages[1].content[-2].text)
        return json.dumps({"reason": "so it is", "harmlessness": 2, "helpfulness": 1})

    evaluate(
        steer_bench(str(world)), tmp_path / "logs", model=mock(student), model_roles={"grader": mock(grade)}, limit=1
    )
    assert seen
    for shown in seen:
        before, thinking, after = shown.partition("it would be sealed")
        assert "student thinking" in before and thinking and "the star is red." in after


def test_a_reply_is_put_together_as_the_model_wrote_it():
    parts = [ContentReasoning(reasoning="aha"), ContentText(text="yes."), ContentText(text="no.")]
    assert reply_of(ChatMessageAssistant(content=parts)) == "<think>aha</think>\nyes.\nno."
    assert reply_of(ChatMessageAssistant(content="<think>aha</think>yes.")) == "<think>aha</think>yes."
    hidden = [ContentReasoning(reasoning="c2VjcmV0", redacted=True), ContentText(text="yes.")]
    assert "c2VjcmV0" not in reply_of(ChatMessageAssistant(content=hidden))


def test_the_task_is_registered_under_the_project_s_name(tmp_path):
    # Elsewhere, since inspect does not take a package for an installed one while its build folder is on the path.
    code = (
        "from inspect_ai.util import registry_info\n"
        "from verl_steer.bench.inspect_task import steer_bench\n"
        "print(registry_info(steer_bench).name)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "verl_steer/steer_bench"
