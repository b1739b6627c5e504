"""The tutor as environment: student turn, tutor turn, student turn, … until the script ends.

Each assistant turn costs one tutor call, which judges the reply and writes the next question. The
last turn is judged too. The loop only *stores* assessments; `reward_manager.py` turns them into
rewards, `output.py` places them.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics

from verl_steer.chat.deadline import Deadline
from verl_steer.config import SteerConfig
from verl_steer.dialogue import Cut, Dialogue, Turn
from verl_steer.plugin.difficulty import meet
from verl_steer.plugin.opening import Once, Opening, open_row
from verl_steer.plugin.output import SteerOutput
from verl_steer.plugin.rollout import Rollout
from verl_steer.plugin.seeds import seed_name, seed_of
from verl_steer.plugin.settings import settings_for
from verl_steer.plugin.tokens import TokenLedger, remember_standins, tokenise, user_message
from verl_steer.records import dialogue_to_dict
from verl_steer.roles.fence import fence_tag, neutralise
from verl_steer.roles.tutor import Assessment, Exchange, TutorRequest
from verl_steer.scores import BREACH_SAFETY


class SteerAgentLoop(AgentLoopBase):
    """verl agent loop `steer`; registered by the plugin."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.pop("tools", None)
        super().__init__(*args, **kwargs)
        remember_standins(self.continuous_token_builder)
        settings = settings_for(self.config)
        self.steer: SteerConfig = settings.config
        self.tutor = settings.tutor
        self.frozen = settings.frozen
        self.greedy_twin = settings.greedy_twin
        self.yoke = settings.yoke
        self.fence_key = settings.fence_key
        self.seed_name = seed_name(self.config)
        self.reply_budget = int(self.rollout_config.response_length)
        self.end_id = int(self.tokenizer.eos_token_id)
        # A model may stop at another control token than its template's (Qwen: <|endoftext|>): it stopped all the same.
        self.stop_ids = {self.end_id, *self.tokenizer.all_special_ids}

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> SteerOutput:
        """Plays one dialogue.

        Args:
            sampling_params: verl's sampling parameters of this rollout.
            **row: The data set row (`data/rows.py`) and verl's `session_id`, `global_steps`, and our
                worker's `steer_validate` and `steer_once` (what the row's rollouts share).

        Returns:
            The rollout's tokens, and the dialogue with its assessments in `extra_fields["steer"]`.
        """
        once: Once = row.get("steer_once") or Once()
        opening = await once.get("opening", lambda: self._open(row))
        rollout = self._begin(opening, row)
        if not self.greedy_twin or row.get("steer_validate", False):
            await self._whole(rollout, sampling_params)
            return self._finish(rollout, row, await self._difficulty(rollout, row))
        # The first of the row's rollouts starts the twin; all carry its dialogue.
        twin = once.get("greedy", lambda: self._greedy(opening, row, sampling_params), gated=False)
        greedy, _ = await asyncio.gather(twin, self._whole(rollout, sampling_params))
        output = self._finish(rollout, row, await self._difficulty(rollout, row))
        output.extra_fields["steer"]["greedy"] = greedy
        return output

    # -- the course of a dialogue ------------------------------------------------------------------

    async def _whole(self, rollout: Rollout, sampling_params: dict[str, Any]) -> None:
        try:
            async with rollout.deadline:
                await self._play(rollout, sampling_params)
        except TimeoutError:
            rollout.dialogue.cut = Cut.DEADLINE
        rollout.mark_unjudged()

    async def _greedy(self, opening: Opening, row: dict[str, Any], sampling_params: dict[str, Any]) -> dict[str, Any]:
        """The row's dialogue with the likeliest reply at every turn (ReMax's baseline); never trained on."""
        twin = self._begin(opening, row)
        await self._whole(twin, {**sampling_params, "temperature": 0.0, "top_p": 1.0, "top_k": -1})
        return dialogue_to_dict(twin.dialogue)

    async def _open(self, row: dict[str, Any]) -> Opening:
        return await open_row(self, row, self.steer.dialogue.max_turns)

    def _begin(self, opening: Opening, row: dict[str, Any]) -> Rollout:
        validate = bool(row.get("steer_validate", False))
        dialogue_config, script = self.steer.dialogue, opening.script
        planned, lengths = len(opening.images), opening.lengths
        # paper.md, length: a turn's budget = (reply budget - planned user tokens) / T, capped. One token
        # a turn is kept for the end token that a turn cut at its budget gets.
        share = (self.reply_budget - sum(lengths)) // planned - 1
        if share < 1:
            raise ValueError(
                f"seed {script.seed_id!r}: {planned} planned turns hold {sum(lengths)} user tokens, which leaves no room "
                f"for replies in data.max_response_length={self.reply_budget}; raise it or shorten the script"
            )
        step, session = int(row.get("global_steps", -1)), int(row.get("session_id", 0))
        when = "validation" if validate else str(step)
        return Rollout(
            dialogue=Dialogue(script=script, planned_turns=planned),
            ledger=TokenLedger(self, opening.messages, opening.prompt_ids),
            opening=opening,
            images=list(opening.images[0]),
            turn_budget=min(share, dialogue_config.max_turn_tokens),
            feedback=self.steer.validation.feedback if validate else dialogue_config.feedback,
            place=(step, session),
            key=f"{self.steer.seed}|{script.seed_id}|{when}|{session}",
            tutor_key=f"{self.steer.seed}|{script.seed_id}|{when}",
            fence=fence_tag(self.fence_key, script.seed_id),
            deadline=Deadline(dialogue_config.deadline_s),
        )

    async def _play(self, rollout: Rollout, sampling_params: dict[str, Any]) -> None:
        dialogue = rollout.dialogue
        asked, strategy = dialogue.script.turns[0].text, "script"
        for t in range(dialogue.planned_turns):
            turn = await self._student_turn(rollout, t, neutralise(asked), strategy, sampling_params)
            if turn is None:
                return
            is_last = t + 1 == dialogue.planned_turns
            assessment = await self._assess(rollout, t, turn, is_last)
            if is_last or dialogue.cut is not None:
                return
            if self._stops(turn):
                dialogue.cut = Cut.STOPPED
                return
            asked, strategy = await self._ask(rollout, t + 1, assessment)

    async def _student_turn(
        self, rollout: Rollout, t: int, asked: str, strategy: str, sampling_params: dict[str, Any]
    ) -> Turn | None:
        """One sampled reply, or None if the server had no room left for a single token."""
        start = time.perf_counter()
        # Servers queue a whole validation set, and sleep while a trainer that shares their GPUs updates: that time is
        # the student's own, one reply at a time.
        with rollout.deadline.paused():
            async with asyncio.timeout(self.steer.dialogue.deadline_s):
                output = await self.server_manager.generate(
                    request_id=rollout.request_id,
                    prompt_ids=rollout.ledger.ids,
                    sampling_params={
                        **sampling_params,
                        "max_tokens": rollout.turn_budget,
                        **seed_of(self.seed_name, f"{rollout.key}|{t}"),
                    },
                    image_data=rollout.images or None,
                    mm_processor_kwargs=self._get_mm_processor_kwargs(),
                )
        rollout.generate_s += time.perf_counter() - start
        token_ids = list(output.token_ids)
        if not token_ids:
            rollout.dialogue.cut = rollout.who_filled_it(t + 1)
            return None
        ended = token_ids[-1] in self.stop_ids
        spoken = token_ids[:-1] if token_ids[-1] == self.end_id else token_ids
        text = self.tokenizer.decode(spoken, skip_special_tokens=False)
        rollout.ledger.append_reply(text, token_ids, output.log_probs, self.end_id)
        rollout.versions += [
            v for k in ("min_global_steps", "max_global_steps") if (v := output.extra_fields.get(k)) is not None
        ]
        turn = Turn(
            planned=rollout.dialogue.script.turns[t],
            asked=asked,
            reply=text,
            strategy=strategy,
            reply_tokens=len(token_ids),
            truncated=not ended,
        )
        rollout.dialogue.turns.append(turn)
        if not ended and len(token_ids) < rollout.turn_budget:
            # The server stopped before the budget: its context window is full.
            rollout.dialogue.cut = rollout.who_filled_it(t + 1)
        return turn

    async def _assess(self, rollout: Rollout, t: int, turn: Turn, is_last: bool) -> Assessment:
        dialogue_config = self.steer.dialogue
        rollout.exchanges.append(
            Exchange(
                question=turn.asked,
                reply=turn.reply,
                images=turn.planned.images,
                thinking=_thinking(turn.reply, dialogue_config.think_open, dialogue_config.think_close),
            )
        )
        assessment = await self.tutor.assess(self._request(rollout, t, is_last))
        turn.verdict = assessment.verdict
        turn.latency_s, turn.tutor_calls = assessment.latency_s, assessment.calls
        rollout.tutor_s += assessment.latency_s
        return assessment

    def _request(self, rollout: Rollout, t: int, is_last: bool) -> TutorRequest:
        script = rollout.dialogue.script
        return TutorRequest(
            script=script,
            history=tuple(rollout.exchanges),
            planned_next=None if is_last else script.turns[t + 1],
            adapt=rollout.feedback == "tutor" and not is_last,
            random_key=f"{rollout.tutor_key}|{t}",
            fence=rollout.fence,
            deadline_s=max(0.0, min(self.steer.tutor.timeout_s, rollout.deadline.left())),
            within=rollout.deadline,
        )

    async def _ask(self, rollout: Rollout, t: int, assessment: Assessment) -> tuple[str, str]:
        """Appends the next user turn: the one that is offered if it fits, else the planned one, which always does."""
        opening = rollout.opening
        images, question = opening.images[t], opening.questions[t - 1]
        text, strategy = opening.script.turns[t].text, "script"
        offered = self._offered(rollout, t, assessment)
        if offered is not None:
            [harder] = await tokenise(self, [user_message(neutralise(offered[0]), images)])
            if self._fits(rollout, t, harder.length):
                question, (text, strategy) = harder, offered
        await rollout.ledger.append_question(question)
        rollout.images += images
        return text, strategy

    def _offered(self, rollout: Rollout, t: int, assessment: Assessment) -> tuple[str, str] | None:
        """A question instead of the planned one, and what made it: the tutor's, or another dialogue's."""
        if rollout.feedback == "tutor" and assessment.next_question:
            return assessment.next_question, assessment.strategy
        if rollout.feedback == "yoked" and self.yoke is not None:
            return self.yoke.question(rollout.dialogue.script.seed_id, *rollout.place, t)
        return None

    def _fits(self, rollout: Rollout, t: int, question_tokens: int) -> bool:
        later = sum(rollout.opening.lengths[t + 1 :])
        replies = (rollout.turn_budget + 1) * (rollout.dialogue.planned_turns - t)
        return rollout.ledger.response_length + question_tokens + later + replies <= self.reply_budget

    def _stops(self, turn: Turn) -> bool:
        scores = turn.verdict.scores if turn.verdict else None
        return self.steer.dialogue.stop == "on_breach" and scores is not None and scores.safety <= BREACH_SAFETY

    async def _difficulty(self, rollout: Rollout, row: dict[str, Any]) -> dict[str, Any] | None:
        """What the frozen student makes of one of the attacks: asked in one rollout of a harmful seed."""
        first = int(row.get("session_id", 0)) == 0 and not row.get("steer_validate")
        if self.frozen is None or not first or not rollout.exchanges or not rollout.dialogue.script.kind.harmful:
            return None
        request = self._request(rollout, len(rollout.exchanges) - 1, is_last=True)
        request = replace(request, deadline_s=self.steer.tutor.timeout_s, within=None)
        return await meet(self.frozen, self.tutor, request, rollout.turn_budget)

    # -- in and out --------------------------------------------------------------------------------

    def _finish(self, rollout: Rollout, row: dict[str, Any], frozen: dict[str, Any] | None) -> SteerOutput:
        dialogue, ledger = rollout.dialogue, rollout.ledger
        if not ledger.mask:  # verl needs at least one response token
            ledger.ids.append(self.end_id)
            ledger.mask.append(0)
            ledger.logprobs = [0.0]
        versions = rollout.versions or [int(row.get("global_steps", 0))]
        return SteerOutput(
            prompt_ids=ledger.prompt_ids,
            response_ids=ledger.response_ids,
            response_mask=ledger.mask,
            response_logprobs=ledger.logprobs,
            multi_modal_data={"images": rollout.images} if rollout.images else {},
            mm_processor_kwargs=self._get_mm_processor_kwargs(),
            num_turns=2 * len(dialogue.turns),
            metrics=AgentLoopMetrics(generate_sequences=rollout.generate_s, tool_calls=rollout.tutor_s),
            extra_fields={
                "min_global_steps": min(versions),
                "max_global_steps": max(versions),
                "turn_scores": [],
                "tool_rewards": [],
                "steer": {
                    "context": {
                        "session": int(row.get("session_id", 0)),
                        "uid": str(row.get("uid", "")),
                        "validation": bool(row.get("steer_validate", False)),
                        **({"frozen": frozen} if frozen else {}),
                    },
                    "dialogue": dialogue_to_dict(dialogue),
                },
            },
        )


def _thinking(reply: str, opening: str, closing: str) -> str:
    """The part of a reply inside the thinking block; an unclosed block reaches to the end."""
    start = reply.find(opening)
    if start < 0:
        return ""
    end = reply.find(closing, start)
    return reply[start + len(opening) : end if end >= 0 else len(reply)]
