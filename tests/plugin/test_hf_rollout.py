"""The transformers rollout's engine: batches change nothing, log-probabilities are the trainer's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_model import build_tiny_vlm

from verl_steer.plugin.cpu.batch_engine import BatchEngine
from verl_steer.plugin.cpu.batcher import Batcher
from verl_steer.plugin.cpu.options import EngineOptions
from verl_steer.plugin.cpu.request import PromptBuilder, Reply, Request
from verl_steer.plugin.cpu.sampling import SamplingSettings, choose_tokens, parse_sampling

RED, BLUE = Image.new("RGB", (56, 56), (200, 30, 30)), Image.new("RGB", (84, 56), (30, 30, 200))
Turn = tuple[str, Sequence[Image.Image]]


class Student:
    """The tiny model with what a rollout needs around it."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        torch.set_num_threads(1)
        self.model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="sdpa").eval()
        self.processor = AutoProcessor.from_pretrained(folder)
        self.builder = PromptBuilder(self.model, self.processor)
        config = self.model.config
        self.never = [
            config.image_token_id,
            config.video_token_id,
            config.vision_start_token_id,
            config.vision_end_token_id,
        ]

    def tokens(self, text: str, images: Sequence[Image.Image]) -> list[int]:
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": text}]
        prompt = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = self.processor(text=[prompt], images=list(images) or None, return_tensors="pt")
        return list(inputs["input_ids"][0].tolist())

    def request(self, turn: Turn, **settings: Any) -> Request:
        text, images = turn
        prompt = self.builder.build(self.tokens(text, images), images)
        return Request.make(prompt, SamplingSettings(**({"max_tokens": 10, "seed": 7} | settings)))

    def engine(self, slots: int = 8) -> BatchEngine:
        return BatchEngine(self.model, self.never, slots)

    @torch.no_grad()
    def teacher_forced(self, ids: list[int], images: Sequence[Image.Image], temperature: float) -> torch.Tensor:
        """(length - 1,) log-probabilities of ids[1:] by one full forward of the model itself."""
        features = self.processor.image_processor(images=list(images), return_tensors="pt") if images else {}
        tokens = torch.tensor([ids])
        kinds = (tokens == self.model.config.image_token_id).int()
        logits = self.model(input_ids=tokens, mm_token_type_ids=kinds, **features).logits[0, :-1]
        return torch.log_softmax(logits / temperature, dim=-1).gather(-1, tokens[0, 1:, None]).squeeze(-1)


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Student:
    return Student(build_tiny_vlm(tmp_path_factory.mktemp("student")))


def run(engine: BatchEngine, *requests: Request) -> list[Reply]:
    engine.admit(requests)
    while engine.active:
        engine.step()
    return [r.reply for r in requests]


TURNS: list[Turn] = [
    ("short", []),
    ("a question about one picture", [RED]),
    ("two pictures of two sizes, and a much longer text beside them " * 3, [BLUE, RED]),
    ("x", [BLUE]),
]


def test_a_seed_gives_the_same_reply_alone_and_in_any_batch(student: Student) -> None:
    alone = [run(student.engine(), student.request(t, seed=i))[0].token_ids for i, t in enumerate(TURNS)]
    together = run(student.engine(), *(student.request(t, seed=i) for i, t in enumerate(TURNS)))
    assert [r.token_ids for r in together] == alone
    engine = student.engine()
    early, late = student.request(TURNS[2], seed=2), student.request(TURNS[1], seed=1)
    engine.admit([early])
    engine.step()
    engine.step()
    engine.admit([late])
    while engine.active:
        engine.step()
    assert [late.reply.token_ids, early.reply.token_ids] == alone[1:3]


def test_different_seeds_give_different_replies(student: Student) -> None:
    replies = run(student.engine(), *(student.request(TURNS[0], seed=i) for i in range(4)))
    assert len({tuple(r.token_ids) for r in replies}) > 1


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_equal_a_full_forward_over_the_whole_vocabulary(student: Student, temperature: float) -> None:
    requests = [student.request(t, temperature=temperature) for t in TURNS]
    for request, reply, (_, images) in zip(requests, run(student.engine(), *requests), TURNS, strict=True):
        ids = request.prompt.token_ids + reply.token_ids
        expected = student.teacher_forced(ids, images, temperature)[-len(reply.token_ids) :]
        torch.testing.assert_close(torch.tensor(reply.log_probs), expected, atol=1e-5, rtol=0)


def test_a_later_turn_reuses_the_cache_and_sees_its_own_picture(student: Student) -> None:
    engine = student.engine()
    first = student.request(("look", [RED]), max_tokens=5)
    run(engine, first)
    second_turn = student.tokens("and this one?", [BLUE])
    ids = first.prompt.token_ids + first.reply.token_ids + second_turn
    before = engine.computed_tokens
    second = Request.make(student.builder.build(ids, [RED, BLUE]), SamplingSettings(max_tokens=4, seed=3))
    run(engine, second)
    # The reply's last token was sampled but never fed: it is the one old token to compute.
    assert engine.computed_tokens - before == len(second_turn) + 1 + 3
    expected = student.teacher_forced(ids + second.reply.token_ids, [RED, BLUE], 1.0)[-4:]
    torch.testing.assert_close(torch.tensor(second.reply.log_probs), expected, atol=1e-5, rtol=0)


def test_equal_tokens_with_another_picture_share_no_cache(student: Student) -> None:
    engine = student.engine(slots=1)
    run(engine, student.request(("same words", [RED])))
    green = Image.new("RGB", (56, 56), (10, 220, 10))
    request = student.request(("same words", [green]))
    run(engine, request)
    expected = student.teacher_forced(request.prompt.token_ids + request.reply.token_ids, [green], 1.0)
    torch.testing.assert_close(
        torch.tensor(request.reply.log_probs), expected[-len(request.reply.token_ids) :], atol=1e-5, rtol=0
    )


def test_forbidden_tokens_are_never_chosen_even_when_most_probable() -> None:
    logits = torch.zeros(64, 5)
    logits[:, 2] = 50.0
    never = torch.tensor([False, False, True, False, False])
    settings = [SamplingSettings(max_tokens=1, seed=i, temperature=i % 2) for i in range(64)]
    generators = [torch.Generator().manual_seed(i) for i in range(64)]
    tokens, log_probs = choose_tokens(logits, settings, generators, never)
    assert 2 not in tokens
    assert set(tokens) == {0, 1, 3, 4}
    # Reported under the whole vocabulary, as the trainer does.
    assert max(log_probs) < -49


def test_sampling_follows_the_distribution() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    draws = 4000
    tokens, _ = choose_tokens(
        probabilities.log().expand(draws, -1),
        [SamplingSettings(max_tokens=1)] * draws,
        [torch.Generator().manual_seed(i) for i in range(draws)],
        torch.zeros(4, dtype=torch.bool),
    )
    frequencies = torch.bincount(torch.tensor(tokens), minlength=4) / draws
    torch.testing.assert_close(frequencies, probabilities, atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("truncation", "kept"), [({"top_k": 2}, {0, 1}), ({"top_p": 0.75}, {0, 1}), ({"top_p": 0.4}, {0})]
)
def test_truncation_keeps_the_most_probable(truncation: dict[str, Any], kept: set[int]) -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(200, -1)
    generators = [torch.Generator().manual_seed(i) for i in range(200)]
    settings = [SamplingSettings(max_tokens=1, **truncation)] * 200
    tokens, _ = choose_tokens(logits, settings, generators, torch.zeros(4, dtype=torch.bool))
    assert set(tokens) == kept


def test_temperature_zero_is_greedy(student: Student) -> None:
    replies = run(student.engine(), *(student.request(TURNS[1], temperature=0, seed=i) for i in range(3)))
    assert len({tuple(r.token_ids) for r in replies}) == 1


def test_a_stop_token_ends_the_reply_and_is_part_of_it(student: Student) -> None:
    (free,) = run(student.engine(), student.request(TURNS[0]))
    stop = free.token_ids[3]
    (stopped,) = run(student.engine(), student.request(TURNS[0], stop_ids=frozenset({stop})))
    assert stopped.finish == "stop"
    assert stopped.token_ids == free.token_ids[: free.token_ids.index(stop) + 1]
    assert free.finish == "length"


def test_the_batcher_answers_every_request_and_tells_a_bad_one(student: Student) -> None:
    batcher = Batcher(student.engine(slots=3))
    good = [batcher.submit(lambda i=i: student.request(TURNS[i % 4], seed=i % 4)) for i in range(10)]
    bad = batcher.submit(lambda: Request.make(student.builder.build([], []), SamplingSettings(max_tokens=1)))
    replies = [f.result(timeout=20) for f in good]
    with pytest.raises(ValueError, match="prompt_ids is empty"):
        bad.result(timeout=20)
    assert replies[0].token_ids == replies[4].token_ids == replies[8].token_ids
    batcher.close()


def test_a_paused_batcher_keeps_requests_until_it_resumes(student: Student) -> None:
    batcher = Batcher(student.engine())
    batcher.pause(reject=False).result(timeout=5)
    waiting = batcher.submit(lambda: student.request(TURNS[0]))
    batcher.between_steps(lambda: batcher.engine.drop_cache()).result(timeout=5)
    assert not waiting.done()
    batcher.resume()
    assert len(waiting.result(timeout=20).token_ids) == 10
    batcher.pause(reject=True).result(timeout=5)
    assert batcher.submit(lambda: student.request(TURNS[0])).result(timeout=5).finish == "abort"
    batcher.close()


def test_placeholders_without_pictures_are_refused(student: Student) -> None:
    with pytest.raises(ValueError, match="4 image placeholders, its 0 images need 0"):
        student.builder.build(student.tokens("x", [RED]), [])


def test_unknown_sampling_parameters_name_the_nearest() -> None:
    limits: dict[str, Any] = {"max_tokens": 4, "seed": 0, "end_ids": [1]}
    with pytest.raises(ValueError, match="did you mean temperature"):
        parse_sampling({"temprature": 1.0}, **limits)
    with pytest.raises(ValueError, match=r"repetition_penalty=1\.0 only"):
        parse_sampling({"repetition_penalty": 1.2}, **limits)
    settings = parse_sampling({"stop_token_ids": [5], "seed": 0, "top_p": 1.0, "logprobs": True}, **limits)
    assert settings.stop_ids == {1, 5}


def test_unknown_engine_options_name_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean slots"):
        EngineOptions.read({"hf": {"slot": 3}})
    assert EngineOptions.read({"hf": {"slots": 3, "threads": 2}}) == EngineOptions(3, 2)
