"""How a worker's outage ends the run, and what share of the job's limit a worker has."""

import asyncio
from types import SimpleNamespace

import pytest

pytest.importorskip("verl")
from omegaconf import OmegaConf

from verl_steer.chat.endpoints import ChatConfigError
from verl_steer.chat.outage import ModelOutage
from verl_steer.config import ConfigError
from verl_steer.plugin import outage, settings, worker
from verl_steer.plugin.outage import NothingScored, TutorOutage, raise_if_all_masked, raise_if_reported


@pytest.fixture
def queue(monkeypatch):
    """The transfer queue's tags, by partition."""
    partitions = {"train": {"uid": {"is_prompt": True, "status": "running", "global_steps": 3}}}

    async def put(key, partition_id, tag):
        partitions.setdefault(partition_id, {})[key] = tag

    monkeypatch.setattr(outage.tq, "async_kv_put", put)
    return partitions


async def test_what_a_worker_reports_ends_the_run_with_where_it_resumes(queue, tmp_path):
    raise_if_reported(queue, str(tmp_path))  # nothing was reported
    await outage.report("worker-7", ModelOutage("no endpoint of the model 'm' has served for 1800 s (refused)"))
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("40")
    with pytest.raises(TutorOutage, match=r"1800 s \(refused\).*resumes from step 40") as raised:
        raise_if_reported(dict(queue), str(tmp_path))
    assert "outage_s" in str(raised.value)
    assert set(queue) == {"train", outage.PARTITION}


@pytest.mark.parametrize("folder", [None, "no/such/folder"])
async def test_without_a_checkpoint_it_says_so(queue, folder):
    await outage.report("worker-7", ModelOutage("gone"))
    with pytest.raises(TutorOutage, match="no checkpoint yet"):
        raise_if_reported(queue, folder)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModelOutage("gone"), "the tutor is gone: gone (steer.tutor.outage_s)"),
        (ChatConfigError("api_key_env=K: is not set"), "an agent-loop worker cannot work: api_key_env=K: is not set"),
    ],
)
async def test_the_worker_reports_before_verl_swallows_the_exception(queue, monkeypatch, error, said):
    async def run(self, *args, **kwargs):
        raise error

    monkeypatch.setattr(worker._PlainWorker, "_run_agent_loop", run)
    mine = object.__new__(worker.SteerAgentLoopWorker)  # without verl's own start
    mine._start = asyncio.Lock()
    with pytest.raises(type(error)):
        await mine._run_agent_loop({}, {"validate": False}, agent_name="steer")
    assert [tag["says"] for tag in queue[outage.PARTITION].values()] == [said]


async def test_the_sampler_hears_it_at_every_poll(queue, monkeypatch, tmp_path):
    from verl_steer.plugin.sampler import SteerReplayBuffer

    monkeypatch.setattr("verl.trainer.ppo.v1.replay_buffer.tq.kv_list", lambda: queue)
    sampler = SteerReplayBuffer(
        trainer_mode="sync",
        trainer_config={},
        max_off_policy_threshold=None,
        max_off_policy_strategy="drop",
        sampler_kwargs={"poll_interval": 0.01, "checkpoint_dir": str(tmp_path)},
    )
    sampler._sync_metadata_from_transfer_queue()
    assert sampler.running_keys["train"] == {"uid"}
    await outage.report("worker-7", ModelOutage("gone"))
    with pytest.raises(TutorOutage, match="no checkpoint yet"):
        sampler.sample(global_steps=3, partition_id="train", batch_size=1)


async def test_what_ended_an_earlier_run_does_not_end_this_one(queue, monkeypatch):
    """A checkpoint of the asynchronous modes brings the queue back as it was."""
    await outage.report("worker-7", ModelOutage("gone"))
    monkeypatch.setattr(outage, "_job", lambda: "another")
    raise_if_reported({name: dict(tags) for name, tags in queue.items()}, None)
    await outage.report("worker-8", ModelOutage("gone again"))
    with pytest.raises(TutorOutage, match="gone again"):
        raise_if_reported(queue, None)


def record(masked, **turn):
    turns = [{"scores": None, "outcome": "failed", "reason": "400: too long", **turn}]
    return {"masked": masked, "mask_reason": "0 of 1 turns judged", "cut": None, "turns": turns}


def test_a_step_without_a_single_rollout_to_train_on_ends_the_run_with_the_cause(tmp_path):
    """verl would end it over an empty response mask, without a word of the tutor."""
    step = [record(True), record(True), record(True, outcome="timeout", reason="")]
    with pytest.raises(NothingScored, match=r"none of the 3 .*2 failed, 1 timeout; .*: 400: too long\)\. There is no"):
        raise_if_all_masked(step, str(tmp_path))
    raise_if_all_masked([*step, record(False)], str(tmp_path))
    raise_if_all_masked([], str(tmp_path))


# -- shares -----------------------------------------------------------------------------------------


def share(monkeypatch, number, workers=3, limit=8):
    """What `settings_for` hands to the tutor in a worker."""
    given = []
    monkeypatch.setattr(settings, "_worker", None)
    monkeypatch.setattr(settings, "build_tutor", lambda config, share: given.append(share) or SimpleNamespace())
    if number is not None:
        settings.number_worker(number, workers)
    node = {"tutor": {"kind": "endpoint", "model": "m", "base_urls": ["http://t/v1"], "max_concurrency": limit}}
    config = OmegaConf.create({"steer": node, "actor_rollout_ref": {"rollout": {"agent": {"num_workers": workers}}}})
    settings.settings_for(config)
    return given[0]


def test_the_workers_shares_sum_to_the_configured_limit(monkeypatch):
    assert [share(monkeypatch, n) for n in range(3)] == [3, 3, 2]
    assert share(monkeypatch, None) == 2, "a worker that was not numbered takes nobody's remainder"
    assert [share(monkeypatch, n, workers=3, limit=2) for n in range(3)] == [1, 1, 1]
    assert share(monkeypatch, 0, workers=1, limit=256) == 256


async def test_the_manager_numbers_its_workers(monkeypatch):
    numbered = []

    class Remote:
        def __init__(self, name):
            self.take_number = SimpleNamespace(remote=lambda i, n: self._note(name, i, n))

        async def _note(self, name, i, n):
            numbered.append((name, i, n))

    async def init(self):
        self.agent_loop_workers = [Remote(name) for name in "abc"]

    monkeypatch.setattr(worker.AgentLoopManagerTQ, "_init_agent_loop_workers", init)
    manager = object.__new__(worker.SteerAgentLoopManager)
    manager.config = OmegaConf.create({"steer": {"tutor": {"kind": "microworld"}}})
    await manager._init_agent_loop_workers()
    assert numbered == [("a", 0, 3), ("b", 1, 3), ("c", 2, 3)]
    mine = object.__new__(worker.SteerAgentLoopWorker)
    mine.config = manager.config
    monkeypatch.setattr(settings, "_worker", None)
    await mine.take_number(1, 3)
    assert settings._worker == (1, 3)


@pytest.mark.parametrize("key", ["api_key_env", "fence_key_env"])
async def test_a_worker_without_its_secret_ends_the_run_before_a_rollout(monkeypatch, key):
    """Its node's Ray was started without the variable: later verl would lose this worker's rollouts and go on."""
    monkeypatch.setattr(settings, "_worker", None)
    monkeypatch.delenv("STEER_TEST_SECRET", raising=False)
    mine = object.__new__(worker.SteerAgentLoopWorker)
    tutor = {"kind": "endpoint", "model": "m", "base_urls": ["http://t/v1"]}
    node = (
        {"tutor": {**tutor, key: "STEER_TEST_SECRET"}}
        if key == "api_key_env"
        else {"tutor": tutor, key: "STEER_TEST_SECRET"}
    )
    agent = {"num_workers": 2, "default_agent_loop": "steer"}
    mine.config = OmegaConf.create({"steer": node, "actor_rollout_ref": {"rollout": {"agent": agent}}})
    with pytest.raises(ConfigError, match=r"STEER_TEST_SECRET: that environment variable is not set"):
        await mine.take_number(0, 2)
    monkeypatch.setenv("STEER_TEST_SECRET", "x")
    await mine.take_number(0, 2)


def test_rollouts_that_never_arrived_are_counted(caplog):
    from verl_steer.plugin.sampler import lost_fraction

    assert lost_fraction(80, 80) == 0.0 and not caplog.records
    assert lost_fraction(60, 80) == 0.25
    assert "20 of 80 rollouts of this step were lost" in caplog.text


@pytest.mark.parametrize(
    ("name", "told"), [("SteerReplayBuffer", {"steer/lost/fraction": 0.25}), ("SteerReplayBufferAsync", {})]
)
def test_a_step_tells_what_share_of_its_rollouts_was_lost(monkeypatch, name, told):
    """Two seeds by two rollouts, one of them missing; the asynchronous sampler replaces such a group, so it has none to tell."""
    from verl_steer.plugin import sampler

    cls = getattr(sampler, name)
    batch = SimpleNamespace(keys=["a_0_0", "a_1_0", "b_1_0"], partition_id="train")
    monkeypatch.setattr(cls.__mro__[2], "sample", lambda *args, **kwargs: (batch, {}))
    monkeypatch.setattr(sampler, "_records", lambda batch, step: [])
    mine = object.__new__(cls)
    mine._writer, mine._rollout_n, mine._checkpoint_dir = None, 2, None
    assert mine.sample(1, "train", 2) == (batch, told)
