"""What a step costs at a real size: rollout, tutor, log-probabilities, update, memory, agreement. See gpu.sh.

    bash benchmarks/gpu.sh                      # one GPU of 80 GB: Qwen2.5-VL-3B's geometry, bf16, FSDP, 3 steps
    bash benchmarks/gpu.sh --tiny               # the same runs on the CPU with a tiny geometry (minutes)

The student has random weights: times and memory are real, what it says is not. Its tutor answers over HTTP after
a fixed latency, so that the tutor's share of a step is known. Beside it verl's own single-turn loop, with the same
student, prompts, batch and tokens a rollout. Figures are means over the steps after the first, which pays for
compilation and caches. Those of real sizes on a GPU are written into docs/gpu.md; the last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harness
import pyarrow as pa
import pyarrow.parquet as pq
from gpu_doc import page_for, write_figures
from gpu_student import build_student
from json_line import last_line
from main_ppo import main_ppo, series

from verl_steer.data.rows import script_to_row, write_rows
from verl_steer.records import read_records
from verl_steer.testing.server import Body, Completion, serve

SINGLE = "single-turn"  # verl's own loop, beside the rollouts by their names
#: A step's parts, as verl times them (seconds).
PARTS = {"rollout": "gen", "log-prob": "old_log_prob", "update": "update_actor", "weights": "update_weights"}
REWARD = '''
def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    """Differs between siblings, so that there is a gradient."""
    return sum(map(ord, solution_str)) % 7 / 7
'''


def main() -> int:
    """Measures, prints, and writes real sizes on a GPU into docs/gpu.md; exit status 0 if every run went through."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", "--quick", action="store_true", help="a tiny geometry, for the CPU")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument(
        "--seeds", type=int, default=0, help="dialogues of a step, before siblings (default 16; tiny: 4)"
    )
    parser.add_argument("--siblings", type=int, default=4, help="rollouts of a seed")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--reply", type=int, default=0, help="tokens of a reply (default 128; tiny: 12)")
    parser.add_argument("--tutor-s", type=float, default=0.0, help="seconds of a tutor call (default 1; tiny: 0.05)")
    parser.add_argument("--rollouts", nargs="+", choices=("hf", "vllm"), help="default: hf, and vllm if installed")
    parser.add_argument("--doc", type=Path, help="page for the figures (default: docs/gpu.md for real sizes on a GPU)")
    parser.add_argument("--out", type=Path, help="keep the runs' output here")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds a run may take")
    given = parser.parse_args()
    if given.steps < 2:
        parser.error("--steps: at least 2, since the first is not counted")
    # A run lives in a session of its own: it must not outlive a benchmark that is told to stop.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    small = given.tiny
    given.seeds, given.reply = given.seeds or (4 if small else 16), given.reply or (12 if small else 128)
    given.tutor_s = given.tutor_s or (0.05 if small else 1.0)
    given.rollouts = given.rollouts or ["hf", *(["vllm"] if importlib.util.find_spec("vllm") and not small else [])]
    if given.out and (earlier := [run for run in (*given.rollouts, SINGLE) if (given.out / run).exists()]):
        parser.error(f"--out {given.out}: holds an earlier measurement ({', '.join(earlier)}); name another folder")
    with tempfile.TemporaryDirectory() as temporary:
        found = measure(given, given.out or Path(temporary))
    page = page_for(given.doc, given.tiny, found["device"])
    if page is not None:
        write_figures(page, found)
    best = found["runs"][given.rollouts[-1]]
    single = found["runs"][SINGLE]
    return last_line(
        "gpu",
        best["tokens_per_s"],
        "tokens of a step per second and GPU, dialogues with a tutor",
        single["tokens_per_s"],
        "every run trains all its steps (no goal is set for the ratio to verl's single-turn loop)",
        all(run["ok"] for run in found["runs"].values()),
        found,
    )


def measure(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every run, one after the other: {"device", "geometry", "sizes", "runs": {name: figures}}."""
    folder.mkdir(parents=True, exist_ok=True)
    name, count = _device()
    geometry = "tiny" if given.tiny else "qwen2_5_vl_3b"
    student = build_student(folder / "student", geometry, bf16=count > 0)
    scripts = [harness.script(n, given.turns, side=112) for n in range(given.seeds * given.steps)]
    write_rows([script_to_row(script, n, "rl") for n, script in enumerate(scripts)], folder / "rl.parquet")
    # verl sends a row to the loop that its `agent_name` names: the single-turn loop's rows name none.
    kept = ("data_source", "prompt", "images", "reward_model", "extra_info")
    plain = [{key: script_to_row(script, n, "rl")[key] for key in kept} for n, script in enumerate(scripts)]
    pq.write_table(pa.Table.from_pylist(plain), folder / "single.parquet")
    (folder / "reward.py").write_text(REWARD)
    runs = {}
    for rollout in given.rollouts:
        with serve(_tutor(given.tutor_s)) as tutor:
            runs[rollout] = _run(given, folder, rollout, count, steer_overrides(given, student, folder, tutor.base_url))
        runs[rollout] |= tutor_seconds(folder / rollout / "checkpoints" / "records")
    single = [*common(given, student, folder), *single_turn_overrides(given, folder)]
    runs[SINGLE] = _run(given, folder, given.rollouts[-1], count, single, SINGLE)
    sizes = {key: getattr(given, key) for key in ("steps", "seeds", "siblings", "turns", "reply", "tutor_s")}
    return {"device": name, "geometry": geometry, "sizes": sizes, "runs": runs}


def common(given: argparse.Namespace, student: Path, folder: Path) -> list[str]:
    """What both loops share: student, data, batch, one rank."""
    rows = given.seeds * given.siblings
    micro = math.gcd(rows, 4)
    return [
        f"actor_rollout_ref.model.path={student}",
        *(f"data.train_files={folder}/rl.parquet", f"data.val_files={folder}/rl.parquet"),
        *(f"data.train_batch_size={given.seeds}", "data.dataloader_num_workers=0", "data.seed=1"),
        *(f"actor_rollout_ref.rollout.n={given.siblings}", "actor_rollout_ref.rollout.calculate_log_probs=true"),
        *("trainer.n_gpus_per_node=1", "trainer.nnodes=1", "actor_rollout_ref.rollout.tensor_model_parallel_size=1"),
        f"actor_rollout_ref.actor.ppo_mini_batch_size={given.seeds}",
        f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={micro}",
        f"actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu={micro}",
        "actor_rollout_ref.actor.use_kl_loss=false",
        "actor_rollout_ref.rollout.agent.num_workers=1",
        *("reward.num_workers=1", "transfer_queue.backend.SimpleStorage.num_data_storage_units=1"),
        *("trainer.use_v1=true", "trainer.logger=[console]", "trainer.val_before_train=false", "trainer.test_freq=-1"),
        *("trainer.save_freq=-1", f"trainer.total_training_steps={given.steps}"),
    ]


def steer_overrides(given: argparse.Namespace, student: Path, folder: Path, tutor: str) -> list[str]:
    """The recipe `steer_grpo` with this student and a tutor over HTTP."""
    # Replies, questions with their template, and room for a boundary token a turn.
    response = given.turns * (given.reply + 256)
    return [
        "+recipe=steer_grpo",
        *common(given, student, folder),
        *("data.max_prompt_length=512", f"data.max_response_length={response}"),
        f"steer.dialogue.max_turn_tokens={given.reply}",
        *("steer.tutor.kind=endpoint", "steer.tutor.model=tutor", f"steer.tutor.base_urls=[{tutor}]"),
        "steer.tutor.max_question_chars=64",
        "steer.difficulty.kind=none",
        "trainer.v1.sampler.sampler_kwargs.poll_interval=0.1",
    ]


def single_turn_overrides(given: argparse.Namespace, folder: Path) -> list[str]:
    """verl alone: one reply of as many tokens as a dialogue's replies together, its own grpo."""
    return [
        "+recipe=steer_cpu",
        *(f"data.train_files={folder}/single.parquet", f"data.val_files={folder}/single.parquet"),
        *("data.max_prompt_length=512", f"data.max_response_length={given.turns * given.reply}"),
        "data.filter_overlong_prompts=false",
        "actor_rollout_ref.rollout.ignore_eos=true",
        f"actor_rollout_ref.rollout.max_model_len={512 + given.turns * given.reply}",
        "algorithm.adv_estimator=grpo",
        f"reward.custom_reward_function.path={folder}/reward.py",
        "+trainer.v1.sampler.sampler_kwargs.poll_interval=0.1",
    ]


def engine_overrides(rollout: str, gpus: int) -> list[str]:
    """Precision, attention and rollout server for this machine."""
    found = [f"actor_rollout_ref.rollout.name={rollout}"]
    if gpus:
        # AdamW in fp32 for 3.75e9 parameters would fill the card alone: 16 bytes each.
        found += ["actor_rollout_ref.actor.fsdp_config.model_dtype=bf16"]
        found += ["actor_rollout_ref.actor.fsdp_config.dtype=bfloat16", "actor_rollout_ref.rollout.dtype=bfloat16"]
        if importlib.util.find_spec("flash_attn") is None:
            found += ["++actor_rollout_ref.model.override_config.attn_implementation=sdpa"]
            found += ["actor_rollout_ref.model.use_remove_padding=false"]
    if rollout == "hf":
        found += ["actor_rollout_ref.rollout.load_format=auto"]
    else:
        found += [
            "actor_rollout_ref.rollout.gpu_memory_utilization=0.4",
            "actor_rollout_ref.rollout.enforce_eager=true",
        ]
    return found


def _run(
    given: argparse.Namespace, folder: Path, rollout: str, gpus: int, overrides: list[str], name: str | None = None
) -> dict[str, Any]:
    """One `main_ppo` run; its figures."""
    place = folder / (name or rollout)
    place.mkdir()
    with card_peak(gpus > 0) as peak:
        status, output = main_ppo(
            place,
            *overrides,
            *engine_overrides(rollout, gpus),
            f"trainer.default_local_dir={place}/checkpoints",
            timeout_s=given.timeout,
        )
    if status:
        raise RuntimeError(f"run {place.name} ended with status {status}:\n{output[-4000:]}")
    return figures(output, given.steps) | {"rollout": rollout, "card_peak_gib": peak.get("gib")}


def figures(output: str, steps: int) -> dict[str, Any]:
    """What verl's console logger says of a run, as means over the steps after the first."""

    def mean(metric: str, digits: int = 3) -> float | None:
        values = series(output, metric)[1:]
        return round(sum(values) / len(values), digits) if values else None

    gradients = series(output, "actor/grad_norm")
    return {
        "step_s": mean("timing_s/step"),
        **{f"{part.replace('-', '_')}_s": mean(f"timing_s/{metric}") for part, metric in PARTS.items()},
        "tokens_per_s": mean("perf/throughput", 1),
        "trainer_peak_gib": max(series(output, "actor/perf/max_memory_allocated_gb"), default=None),
        "probs_diff_max": max(series(output, "training/rollout_probs_diff_max"), default=None),
        "probs_diff_mean": mean("training/rollout_probs_diff_mean", 9),
        "ok": len(gradients) == steps and all(math.isfinite(g) and g > 0 for g in gradients),
    }


def tutor_seconds(records: Path) -> dict[str, Any]:
    """Tutor's share, from the dialogue records: seconds of the longest dialogue and of a call, and the calls."""
    dialogues = [record["turns"] for record in read_records(records, "train") if record["step"] > 1]
    spent = [sum(turn["latency_s"] or 0.0 for turn in turns) for turns in dialogues]
    calls = [turn["latency_s"] for turns in dialogues for turn in turns if turn["tutor_calls"]]
    unanswered = sum(turn["outcome"] != "ok" for turns in dialogues for turn in turns)
    return {
        "tutor_longest_dialogue_s": round(max(spent), 3),
        "tutor_call_s": round(sum(calls) / len(calls), 3),
        "tutor_unanswered": unanswered,
        "dialogues": len(dialogues),
    }


@contextmanager
def card_peak(watch: bool) -> Iterator[dict[str, float]]:
    """Peak memory in use on the first GPU, every process together, as nvidia-smi tells it twice a second (GiB)."""
    seen: dict[str, float] = {}
    done = threading.Event()

    def look() -> None:
        command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
        while not done.wait(0.5):
            answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            seen["gib"] = max(seen.get("gib", 0.0), round(float(answer) / 1024, 2))

    thread = threading.Thread(target=look, daemon=True)
    if watch:
        if shutil.which("nvidia-smi") is None:
            raise RuntimeError("nvidia-smi is not on PATH; it tells the card's memory")
        thread.start()
    try:
        yield seen
    finally:
        done.set()
        if watch:
            thread.join()


def _tutor(seconds: float) -> Any:
    async def answer(body: Body) -> Completion:
        await asyncio.sleep(seconds)
        low = sum(map(ord, json.dumps(body["messages"]))) % 2
        reply = {"reason": "by length", "safety": 1 if low else 8, "usefulness": 1 if low else 6, "faithfulness": 5}
        return Completion(json.dumps({**reply, "strategy": "deepen", "next_question": "and then?"}))

    return answer


def _device() -> tuple[str, int]:
    """(name, number of GPUs)."""
    if os.environ.get("VERL_STEER_DEVICE") == "cpu":
        return "cpu", 0
    import torch

    if not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py: torch sees no GPU; run benchmarks/gpu.sh --tiny on a machine without one")
    return torch.cuda.get_device_name(0), torch.cuda.device_count()


if __name__ == "__main__":
    raise SystemExit(main())
