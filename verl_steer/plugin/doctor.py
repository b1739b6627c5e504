"""`verl-steer doctor`: is this machine, this recipe and this tutor ready for a run?

Runs the same checks as preflight, but all of them, and adds what only matters when something is
wrong or expensive: versions, a Ray worker's view of the plugin, the device, and what the run will
ask of the tutor.
"""

from __future__ import annotations

import importlib
import platform
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_steer.plugin import algorithm, arithmetic, checks, geometry, gpus, lora, memory, paths, requirements
from verl_steer.plugin.demand import demand
from verl_steer.plugin.findings import Finding, compose_recipe, gpus_seen, is_sft, run, student
from verl_steer.plugin.preflight import managed_tutor
from verl_steer.plugin.sample import sample_image
from verl_steer.plugin.sft_doctor import stage_two
from verl_steer.plugin.version import SUPPORTED, installed

SHOWN = (
    "verl",
    "torch",
    "transformers",
    "ray",
    "tensordict",
    "TransferQueue",
    "vllm",
    "sglang",
    "flash-attn",
    "numpy",
    "qwen-vl-utils",
)

#: What verl lacks and the plugin gives it by another function: name, what for, verl's module, the function there.
_GIVEN = (
    ("vision-language-value-model", "a critic that sees", "verl.utils.model", "load_valuehead_model"),
    (
        "freeze-vision",
        "a switch that freezes the vision tower",
        "verl.workers.engine.fsdp.transformer_impl",
        "FSDPEngine._build_module",
    ),
)
#: What is known of a tutor that cannot be asked now.
_WITHOUT_CALL = {
    "microworld": "microworld: rules in this process, no calls",
    "custom": "custom: {tutor.custom.name} of {tutor.custom.path}, not called",
    "managed": "managed: {managed.servers} server(s) of {managed.engine} on {managed.gpus} GPU(s), asked when the run has started them",
}


def run_doctor(overrides: list[str], config_dir: Path | None = None) -> list[Finding]:
    """Every check, in order; a check that needs the result of a failed one is left out.

    Args:
        overrides: Hydra overrides as given to `main_ppo`, or to the SFT trainer, e.g. `+recipe=steer_grpo`.
        config_dir: A folder of the user's own configuration, as `main_ppo --config-dir`.
    """
    findings = [_versions()]
    config = compose_recipe(overrides, config_dir, findings)
    if config is None:
        return findings
    if is_sft(config):
        stage_two(config, findings)
    else:
        _stage_three(config, findings)
    findings.append(_workarounds())
    for finding in findings:
        finding.facts = {k: v for k, v in finding.facts.items() if isinstance(v, (str, int, float, bool, dict, list))}
    return findings


def _stage_three(config: DictConfig, findings: list[Finding]) -> None:
    """What `main_ppo` needs."""
    run(findings, "plugin in this process", lambda: (checks.plugin_loaded(config), {}))
    run(findings, "plugin in a Ray worker", lambda: (_ray_worker(config), {}))
    run(findings, "device and rollout", lambda: _device(config))
    run(findings, "attention", lambda: (requirements.attention(config), {}))
    run(findings, "GPUs", lambda: _gpus(config))
    run(findings, "algorithm", lambda: (algorithm.usable(config), {}))
    batches = run(findings, "batches", lambda: (arithmetic.batches_divide(config), {}))
    run(findings, "paths", lambda: (paths.mean_the_same(config), {}))
    run(findings, "output folders", lambda: (checks.output_writable(config), {}))
    steer = run(findings, "steer node", lambda: ("valid", {"value": checks.steer_node(config)}))
    _world(config, findings)
    model = run(findings, "student", lambda: student(config))
    shape = run(findings, "student's layers", lambda: _layers(config)) if model else None
    if shape and batches is not None:
        findings.append(_memory(config, shape["value"]))
    rows = None
    if steer and model:
        rows = run(findings, "data", lambda: _data(config, steer["value"], model))
    if steer:
        run(findings, "tutor", lambda: _tutor(config, steer["value"], rows))
    findings.append(_trust_note())


def _versions() -> Finding:
    found = {name: installed(name) for name in SHOWN}
    wrong = [
        f'{name} {found.get(name) or "is not installed"}, supported: {spec}; pip install "{name}{spec}"'
        for name, spec in SUPPORTED.items()
        if found.get(name) is None or not spec.contains(found[name] or "", prereleases=True)
    ]
    detail = f"Python {platform.python_version()}, " + ", ".join(f"{k} {v}" for k, v in found.items() if v)
    return Finding(
        "versions", "fail" if wrong else "ok", "; ".join(wrong) or detail, {k: v or "" for k, v in found.items()}
    )


def _ray_worker(config: DictConfig) -> str:
    import ray

    node = OmegaConf.create({"algorithm": {"adv_estimator": config.algorithm.adv_estimator}})
    OmegaConf.update(
        node,
        "actor_rollout_ref.rollout.agent.default_agent_loop",
        config.actor_rollout_ref.rollout.agent.default_agent_loop,
        force_add=True,
    )
    OmegaConf.update(node, "reward.reward_manager", config.reward.reward_manager, force_add=True)

    def look(plain: Any) -> str:
        import verl  # noqa: F401
        from omegaconf import OmegaConf

        from verl_steer.plugin import checks

        try:
            return "ok: " + checks.plugin_loaded(OmegaConf.create(plain))
        except checks.Problem as problem:
            return str(problem)

    started = not ray.is_initialized()
    if started:
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        try:
            try:
                ray.init(address="auto", **quiet)  # the cluster the run would join
            except ConnectionError:
                ray.init(num_cpus=1, include_dashboard=False, **quiet)
        except Exception as error:  # Ray raises bare Exceptions when its processes do not come up
            raise checks.Problem(f"Ray does not start here: {error}") from error
    try:
        answer = ray.get(ray.remote(num_cpus=1)(look).remote(OmegaConf.to_container(node)), timeout=180)
    except ray.exceptions.GetTimeoutError as error:
        raise checks.Problem(
            "a Ray worker did not answer within 180 s; is the cluster full or its network blocked?"
        ) from error
    finally:
        if started:
            ray.shutdown()
    if not answer.startswith("ok: "):
        raise checks.Problem(f"in a Ray worker: {answer}")
    return str(answer.removeprefix("ok: "))


def _device(config: DictConfig) -> tuple[str, dict[str, Any]]:
    device, rollout = str(config.trainer.device), str(config.actor_rollout_ref.rollout.name)
    count = gpus_seen(device)
    nodes, wanted = int(config.trainer.nnodes), int(config.trainer.n_gpus_per_node)
    if device == "cuda" and nodes == 1 and count < wanted:
        raise checks.Problem(
            f"trainer.n_gpus_per_node={wanted}, but torch sees {count} GPUs here; lower it or name the nodes"
        )
    requirements.rollout_engine("actor_rollout_ref.rollout.name", rollout)
    facts = {"device": device, "gpus": count, "rollout": rollout}
    return f"{device} ({count} GPUs seen), rollout {rollout}", facts


def _gpus(config: DictConfig) -> tuple[str, dict[str, Any]]:
    """Who takes how many, and whether all find room."""
    return gpus.find_room(config), {share.who: share.gpus for share in gpus.shares(config)}


def _world(config: DictConfig, findings: list[Finding]) -> None:
    from verl_steer.plugin.resolvers import uses_embedded_student, world_paths

    if uses_embedded_student(config):
        paths = world_paths(config)
        if not paths.student.exists():
            findings.append(
                Finding("embedded world", "note", f"not built yet; the first run builds it in {paths.root}")
            )


def _layers(config: DictConfig) -> tuple[str, dict[str, Any]]:
    student = geometry.hf_config(config)
    attention, key_value = geometry.heads(student)
    arithmetic.heads_divide(config, attention, key_value)
    adapter = lora.adapter_reaches_rollout(config, student)
    return f"{attention} attention heads, {key_value} key-value heads; {adapter}", {"value": student}


def _memory(config: DictConfig, student: Any) -> Finding:
    """What the run needs of a GPU: an estimate, so it warns and never blocks."""
    card, assumed = memory.card_bytes()
    if str(config.trainer.device) != "cuda":
        return Finding("memory", "note", f"trainer.device={config.trainer.device}: no GPU memory to estimate")
    found = memory.estimate(config, geometry.measure(student), card)
    dialogue = int(config.data.max_prompt_length) + int(config.data.max_response_length)
    warnings = found.warnings(card, dialogue)
    detail = found.text(card, assumed) + "".join(f". WARNING: {warning}" for warning in warnings)
    facts: dict[str, Any] = {**asdict(found), "training": found.training, "rollout": found.rollout, "card": card}
    return Finding("memory", "note", detail, {**facts, "card_assumed": assumed, "warnings": warnings})


def _data(config: DictConfig, steer: Any, model: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    counts = checks.rows_usable(config, steer, model["tokenizer"], model["processor"])
    arithmetic.enough_rows(config, counts["train"])
    return ", ".join(f"{v} {k}" for k, v in counts.items()), dict(counts)


def _tutor(config: DictConfig, steer: Any, rows: dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
    if steer.tutor.kind == "managed":
        managed_tutor(config, steer.tutor)
    one = checks.tutor_answers(steer, sample_image())
    if steer.tutor.kind != "endpoint":
        return _WITHOUT_CALL[steer.tutor.kind].format(tutor=steer.tutor, managed=steer.tutor.managed), {}
    facts: dict[str, Any] = dict(one)
    detail = f"{steer.tutor.model}: a schema-true assessment of a picture in {one['latency_s']:.1f} s"
    if rows:
        facts |= demand(config, steer, rows, one)
        detail += (
            f"; the run asks at least {facts['run_calls']:,} calls, {facts['run_tokens']:,} tokens,"
            f" {facts['run_hours']:.1f} h at {steer.tutor.max_concurrency} at a time"
        )
    return detail, facts


def _workarounds() -> Finding:
    """Everything of verl that is another function in this process than verl's own."""
    from verl_steer.plugin.compat import workarounds

    found = {w.name: (w.why, w.in_force) for w in workarounds()}
    for name, why, module, function in _GIVEN:
        inside = attrgetter(function)(importlib.import_module(module)).__module__
        found[name] = (why, inside.startswith("verl_steer."))
    detail = "; ".join(f"{name} ({why})" for name, (why, in_force) in found.items() if in_force) or "none needed"
    return Finding("workarounds for verl", "note", detail, {name: in_force for name, (_, in_force) in found.items()})


def _trust_note() -> Finding:
    return Finding(
        "trust",
        "note",
        "verl's reward worker loads the tokenizer with trust_remote_code=True and resumes with "
        "torch.load(weights_only=False): only use students and checkpoints whose source you trust",
    )
