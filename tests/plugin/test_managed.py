"""A tutor that the run serves itself: room for it, its servers, the hand-over of their addresses, its end."""

import json
import re
import socket
from types import SimpleNamespace

import pytest

pytest.importorskip("verl")
import ray
from hydra import compose, initialize_config_module
from main_ppo import SMALL, main_ppo, series
from tiny_model import build_tiny_vlm
from tiny_tutor import build_tiny_tutor

from verl_steer.chat.outage import ModelOutage
from verl_steer.config import SteerConfig, TutorConfig
from verl_steer.data.rows import script_to_row, write_rows
from verl_steer.dialogue import Kind, Script, UserTurn
from verl_steer.plugin import canary_check, doctor, gpus, managed
from verl_steer.plugin.checks import Problem, tutor_answers
from verl_steer.plugin.preflight import managed_tutor
from verl_steer.plugin.sample import sample_image
from verl_steer.plugin.settings import steer_config
from verl_steer.records import read_records
from verl_steer.roles.build import build_tutor
from verl_steer.roles.endpoint_tutor import EndpointTutor
from verl_steer.testing.server import Completion, serve

MANAGED = ("steer.tutor.kind=managed", "steer.tutor.managed.path=tutor-model")


def composed(recipe: str, *overrides: str):
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=[f"+recipe={recipe}", *overrides])


def tutor_of(**node) -> TutorConfig:
    return SteerConfig.from_mapping({"tutor": {"kind": "managed", "model": "tutor-model", **node}}).tutor


# -- room ----------------------------------------------------------------------------------------------------


def test_a_cluster_too_small_for_student_and_tutor_is_named_with_the_sum(monkeypatch):
    config = composed(
        "steer_grpo_7b", *MANAGED, "steer.tutor.managed.engine=vllm", "steer.tutor.managed.n_gpus_per_node=4"
    )
    monkeypatch.setattr(gpus, "_cluster", lambda: 8)
    with pytest.raises(Problem) as caught:
        gpus.check_room(config)
    assert (
        "student 8 (trainer.nnodes=1 x n_gpus_per_node=8) + tutor 4 (steer.tutor.managed.nnodes=1 x n_gpus_per_node=4) "
        "= 12 GPUs, but the running Ray cluster has 8"
    ) in str(caught.value)
    monkeypatch.setattr(gpus, "_cluster", lambda: 12)
    assert "= 12 GPUs of 12 (the running Ray cluster)" in gpus.check_room(config)


@pytest.mark.parametrize(
    ("overrides", "who"),
    [
        ((), ["student"]),
        (MANAGED, ["student", "tutor"]),
        (("trainer.v1.trainer_mode=separate_async", "actor_rollout_ref.rollout.nnodes=1"), ["student", "rollout"]),
        (
            ("reward.reward_model.enable_resource_pool=true", "reward.reward_model.nnodes=1"),
            ["student", "reward model"],
        ),
    ],
)
def test_every_pool_of_the_run_is_counted(overrides, who):
    assert [share.who for share in gpus.shares(composed("steer_grpo_7b", *overrides))] == who


def test_without_a_gpu_ray_offers_as_many_names_as_student_and_tutor_take():
    config = composed("steer_grpo", *MANAGED, "steer.tutor.managed.n_gpus_per_node=2")
    assert config.ray_kwargs.ray_init.num_gpus == 3 and "= 3 GPUs of 3" in gpus.check_room(config)
    assert config.steer.tutor.managed.engine == "hf"
    with pytest.raises(Problem, match=r"= 3 GPUs, but ray_kwargs.ray_init.num_gpus=2 has 2"):
        gpus.check_room(
            composed("steer_grpo", *MANAGED, "steer.tutor.managed.n_gpus_per_node=2", "ray_kwargs.ray_init.num_gpus=2")
        )


def test_the_doctor_says_who_takes_how_many():
    detail, facts = doctor._gpus(composed("steer_grpo", *MANAGED, "steer.tutor.managed.n_gpus_per_node=2"))
    assert facts == {"student": 1, "tutor": 2} and "= 3 GPUs of 3 (ray_kwargs.ray_init.num_gpus=3)" in detail
    detail, facts = doctor._gpus(composed("steer_grpo_7b"))
    assert facts == {"student": 8} and detail == "student 8 (trainer.nnodes=1 x n_gpus_per_node=8) = 8 GPUs"


def test_servers_of_their_own_count_too(monkeypatch):
    monkeypatch.setattr(gpus, "_cluster", lambda: 8)
    separate = composed("[steer_grpo_7b,with_separate_async]", "ray_kwargs.ray_init.num_gpus=null")
    monkeypatch.setenv("VERL_STEER_DEVICE", "cuda")
    with pytest.raises(Problem, match=r"student 8 .* \+ rollout .* GPUs, but the running Ray cluster has 8"):
        doctor._gpus(separate)
    with pytest.raises(Problem, match="GPUs, but the running Ray cluster has 8"):
        gpus.find_room(separate)
    monkeypatch.setattr(gpus, "_cluster", lambda: pytest.fail("one pool: nothing to add up"))
    assert gpus.find_room(composed("steer_grpo_7b")).endswith("= 8 GPUs")


# -- what is wrong is said before Ray starts -----------------------------------------------------------------


def test_a_tutor_that_is_not_there_or_that_nobody_starts_is_named(tmp_path):
    build_tiny_vlm(tmp_path / "tutor")
    there = f"steer.tutor.managed.path={tmp_path / 'tutor'}"
    config = composed("steer_grpo", "steer.tutor.kind=managed", f"steer.tutor.managed.path={tmp_path / 'tutr'}")
    with pytest.raises(Problem, match=r"steer.tutor.managed.path=.*tutr: does not exist; did you mean .*tutor\?"):
        managed_tutor(config, steer_config(config).tutor)
    other = "actor_rollout_ref.rollout.agent.agent_loop_manager_class=verl.trainer.ppo.v1.AgentLoopManagerTQ"
    config = composed("steer_grpo", "steer.tutor.kind=managed", there, other)
    with pytest.raises(Problem, match=r"AgentLoopManagerTQ starts no tutor"):
        managed_tutor(config, steer_config(config).tutor)
    config = composed("steer_grpo", "steer.tutor.kind=managed", there)
    assert "student 1" in managed_tutor(config, steer_config(config).tutor)


@pytest.mark.parametrize(
    ("rollout", "says"),
    [
        (
            {"max_num_sequences": 4},
            "steer.tutor.managed.rollout.max_num_sequences is no key of verl's RolloutConfig; did you mean max_num_seqs?",
        ),
        (
            {"tensor_model_parallel_size": 2},
            "rollout.tensor_model_parallel_size: set steer.tutor.managed.tensor_parallel",
        ),
        ({"data_parallel_size": 2}, "a managed tutor cannot have it"),
        ({"max_num_seqs": "many"}, "steer.tutor.managed.rollout: "),
    ],
)
def test_a_wrong_key_of_the_servers_is_named(rollout, says):
    with pytest.raises(Problem, match=re.escape(says)):
        managed.rollout_config(tutor_of(managed={"rollout": rollout}))


def test_the_servers_get_the_tutors_settings_and_none_of_a_students():
    options = {"enforce_eager": True, "engine_kwargs": {"vllm": {"block_size": 32}}}
    config = managed.rollout_config(
        tutor_of(max_tokens=700, managed={"tensor_parallel": 4, "max_model_len": 9000, "rollout": options})
    )
    assert (config.name, config.tensor_model_parallel_size, config.max_model_len) == ("vllm", 4, 9000)
    assert config.load_format == "auto", "verl's default is random weights, for a trainer to replace"
    assert not config.free_cache_engine and not config.enable_sleep_mode
    assert config.response_length == 700, "vLLM cuts every reply at this length"
    assert config.enforce_eager and config.engine_kwargs["vllm"]["block_size"] == 32


def test_without_somebody_to_start_it_a_managed_tutor_is_no_tutor():
    with pytest.raises(ValueError, match="SteerAgentLoopManager"):
        build_tutor(tutor_of(), 4)


def test_canaries_say_that_a_managed_tutor_is_not_up():
    with pytest.raises(Problem, match=r"test it there with steer\.tutor\.kind=endpoint"):
        canary_check._ask(SteerConfig(tutor=tutor_of()), {})


# -- the hand-over -------------------------------------------------------------------------------------------


def judge(body: dict) -> Completion:
    reply = {
        "reason": "seen",
        "safety": 8,
        "usefulness": 6,
        "faithfulness": 5,
        "strategy": "deepen",
        "next_question": "more?",
    }
    return Completion(json.dumps(reply))


def replicas_at(*servers) -> list:
    return [
        SimpleNamespace(server_address=server.base_url.removeprefix("http://").removesuffix("/v1"))
        for server in servers
    ]


async def test_the_loops_get_an_endpoint_with_every_address_and_the_tutors_settings():
    config = composed("steer_grpo", *MANAGED, "steer.tutor.max_concurrency=7", "steer.tutor.temperature=0.5")
    with serve(judge, models=["/models/tutor"]) as one, serve(judge, models=["/models/tutor"]) as two:
        changed = await managed.hand_over(config, steer_config(config).tutor, replicas_at(one, two))
        tutor = steer_config(changed).tutor
        assert (tutor.kind, tutor.model, tutor.base_urls) == ("endpoint", "/models/tutor", (one.base_url, two.base_url))
        assert (tutor.max_concurrency, tutor.temperature) == (7, 0.5)
        assert isinstance(build_tutor(tutor, 7), EndpointTutor)
        assert one.requests or two.requests, "it has judged a picture once"
    assert steer_config(config).tutor.kind == "managed", "the run's own configuration stays as it was written"


def test_a_fallback_judge_is_asked_before_the_managed_tutor_is_up():
    with serve(judge, models=["judge"]) as server:
        steer = SteerConfig(tutor=tutor_of(fallback={"model": "judge", "base_urls": [server.base_url]}))
        assert tutor_answers(steer, sample_image())["calls"] == 0, "of the tutor's own there are none yet"
        assert [request["model"] for request in server.requests] == ["judge"]


async def test_a_tutor_that_cannot_judge_starts_no_training():
    config = composed("steer_grpo", *MANAGED)
    fault = pytest.raises(Problem, match=r"steer.tutor.managed.model=m gave no usable assessment.*\(unparseable\)")
    with serve(lambda body: Completion("no idea"), models=["m"]) as server, fault:
        await managed.hand_over(config, steer_config(config).tutor, replicas_at(server))


@pytest.mark.parametrize(
    ("offers", "says"), [([["a"], ["b"]], "different models: a, b"), ([["a"], []], "does not say what it serves")]
)
async def test_servers_that_disagree_are_named(offers, says):
    config = composed("steer_grpo", *MANAGED)
    fault = pytest.raises(managed.ManagedTutorError, match=says)
    with serve(judge, models=offers[0]) as one, serve(judge, models=offers[1]) as two, fault:
        await managed.hand_over(config, steer_config(config).tutor, replicas_at(one, two))


# -- real servers of verl's in a real Ray cluster ------------------------------------------------------------


def listens(url: str) -> bool:
    host, port = re.search(r"//(.*):(\d+)/", url).groups()
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex((host, int(port))) == 0


@pytest.fixture
def cluster():
    ray.init(num_cpus=6, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.train
async def test_its_servers_start_in_a_pool_of_their_own_and_one_that_dies_is_a_lost_tutor(cluster, tmp_path):
    model = build_tiny_tutor(tmp_path / "tutor")
    node = {"path": str(model), "engine": "hf", "n_gpus_per_node": 1, "rollout": {"max_num_seqs": 2}}
    tutor = tutor_of(temperature=1.0, max_tokens=300, timeout_s=400.0, managed=node)
    with pytest.raises(managed.ManagedTutorError, match=r"needs 2 places of 1 GPU and 2 CPUs .* have room for 1 = 1"):
        await managed.start(tutor_of(managed={**node, "n_gpus_per_node": 2}))
    with pytest.raises(
        managed.ManagedTutorError, match=r"the tutor /no/such/model \(steer.tutor.managed\) did not start"
    ):
        await managed.start(tutor_of(managed={**node, "path": "/no/such/model"}))
    replicas = await managed.start(tutor)
    config = composed("steer_grpo", "steer.tutor.kind=managed", f"steer.tutor.managed.path={model}")
    changed = steer_config(await managed.hand_over(config, tutor, replicas)).tutor
    assert changed.model == "tutor" and listens(changed.base_urls[0])
    client = EndpointTutor(changed, max_concurrency=1, backoff_s=0.01, outage_s=1.0)
    ray.kill(replicas[0].workers[0])
    with pytest.raises(ModelOutage, match=re.escape(changed.base_urls[0])):
        await client.probe(sample_image())
    await client.aclose()


@pytest.mark.train
@pytest.mark.heavy
def test_two_steps_with_a_tutor_that_the_run_serves_itself(tmp_path):
    """Student and tutor of random weights; the tutor's replies are held to its schema, not to its lock."""
    student, tutor = build_tiny_vlm(tmp_path / "student"), build_tiny_tutor(tmp_path / "tutor")
    turns = (UserTurn("What does the sign say?", (sample_image(),)), UserTurn("And why?"))
    scripts = [Script(f"seed-{n}", Kind.RED_TEAM, turns) for n in range(4)]
    write_rows([script_to_row(s, n, "rl") for n, s in enumerate(scripts)], tmp_path / "rl.parquet")
    status, output = main_ppo(
        tmp_path,
        "+recipe=steer_grpo",
        *SMALL,
        f"actor_rollout_ref.model.path={student}",
        f"data.train_files={tmp_path}/rl.parquet",
        f"data.val_files={tmp_path}/rl.parquet",
        f"trainer.default_local_dir={tmp_path}/out",
        "steer.tutor.kind=managed",
        f"steer.tutor.managed.path={tutor}",
        "+steer.tutor.managed.rollout.max_num_seqs=4",
        "steer.tutor.temperature=1.0",
        "steer.tutor.max_tokens=300",
        "steer.tutor.timeout_s=400",
        "trainer.total_epochs=2",
        "trainer.total_training_steps=2",
        timeout_s=1500,
    )
    assert status == 0, output[-6000:]
    assert len(series(output, "actor/grad_norm")) == 2
    records = list(read_records(tmp_path / "out" / "records", "train"))
    assert len(records) == 2 * 4 * 2 and all(len(r["turns"]) == 2 for r in records)
    turns_played = [turn for record in records for turn in record["turns"]]
    assert all(turn["tutor_calls"] >= 1 for turn in turns_played), "the served tutor was asked for every turn"
    outcomes = [turn["outcome"] for turn in turns_played]
    assert set(outcomes) <= {"ok", "unparseable"} and outcomes.count("ok") >= len(outcomes) / 2
    assert any(turn["asked"] != turn["planned"] for turn in turns_played), "it has written questions of its own"
    for record in records:
        lacking = any(turn["scores"] is None for turn in record["turns"])
        assert record["masked"] == lacking, "a missing verdict is not a low score"
    [url] = re.findall(r"the tutor is up at (http://\S+?/v1);", output)
    assert not listens(url), "it has gone with the run"
