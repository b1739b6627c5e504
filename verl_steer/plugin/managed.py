"""`steer.tutor.kind=managed`: the run serves its tutor itself, with verl's own rollout servers.

verl's servers speak OpenAI's chat completions over HTTP, so all that is left to do is to start some in a resource
pool of their own and to tell the agent loops where they are. From then on the tutor is an endpoint like any other:
the same client, limits, retries, typed outcomes and outage rule. A server that dies is one that refuses connections.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import difflib
from typing import Any

import ray
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl_steer.chat.client import ChatClient
from verl_steer.config import ManagedConfig, TutorConfig
from verl_steer.plugin.checks import Problem, assessment_of

#: Keys of verl's RolloutConfig that `steer.tutor.managed` has under a name of its own, or that cut the pool otherwise.
_TAKEN = {
    "name": "engine",
    "nnodes": "nnodes",
    "n_gpus_per_node": "n_gpus_per_node",
    "tensor_model_parallel_size": "tensor_parallel",
    "gpu_memory_utilization": "gpu_memory_utilization",
    "max_model_len": "max_model_len",
    "mode": None,
    "data_parallel_size": None,
    "pipeline_model_parallel_size": None,
}
#: CPUs of Ray's that a worker's place in a pool of its own takes (verl/workers/rollout/replica.py, init_standalone).
_CPUS_A_GPU = 2
_HF_BATCH = 16
_SUFFIX = "steer_tutor"


class ManagedTutorError(RuntimeError):
    """The tutor's servers did not come up."""


def rollout_config(tutor: TutorConfig) -> Any:
    """verl's RolloutConfig of the tutor's servers.

    Raises:
        Problem: `steer.tutor.managed.rollout` has a key that verl does not know, or one that has its place elsewhere.
    """
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.config import RolloutConfig

    managed = tutor.managed
    where = "steer.tutor.managed.rollout"
    known = [field.name for field in dataclasses.fields(RolloutConfig) if field.name not in _TAKEN]
    for key in managed.rollout:
        if key in _TAKEN:
            instead = f"set steer.tutor.managed.{_TAKEN[key]}" if _TAKEN[key] else "a managed tutor cannot have it"
            raise Problem(f"{where}.{key}: {instead}")
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            raise Problem(
                f"{where}.{key} is no key of verl's RolloutConfig{f'; did you mean {close[0]}?' if close else ''}"
            )
    ours = {
        "name": managed.engine,
        "tensor_model_parallel_size": managed.tensor_parallel,
        "gpu_memory_utilization": managed.gpu_memory_utilization,
        "max_model_len": managed.max_model_len,
        # verl's defaults are a student's: random weights that a trainer replaces, memory that it takes back.
        "load_format": "auto",
        "free_cache_engine": False,
        "enable_sleep_mode": False,
        "skip_tokenizer_init": False,
        # vLLM takes it for the longest reply that any request may ask for.
        "response_length": tutor.max_tokens,
        **({"max_num_seqs": _HF_BATCH} if managed.engine == "hf" else {}),
    }
    try:
        return omega_conf_to_dataclass(ours | dict(managed.rollout), RolloutConfig)
    except (OmegaConfBaseException, TypeError, ValueError, AssertionError) as error:
        raise Problem(f"{where}: {error}") from error


def replica_class(engine: str) -> type:
    """The class of verl's that starts a server of this engine."""
    if engine == "hf":
        from verl_steer.plugin.chat_replica import HfChatReplica

        return HfChatReplica
    from verl.workers.rollout.replica import get_rollout_replica_class

    found: type = get_rollout_replica_class(engine)
    return found


async def start(tutor: TutorConfig) -> list[Any]:
    """Starts the tutor's servers and waits until all are up.

    Args:
        tutor: The validated `steer.tutor` node, kind `managed`.

    Returns:
        verl's replicas. The servers live as long as these are held, at most as long as the job.

    Raises:
        ManagedTutorError: The cluster has no room, the model cannot be loaded, or `start_s` has passed.
    """
    from verl.workers.config import HFModelConfig

    managed = tutor.managed
    path = managed.path or tutor.model
    _check_room(managed)
    config, cls = rollout_config(tutor), replica_class(managed.engine)
    print(f"verl_steer: {managed.servers} server(s) of the tutor {path} start on {managed.gpus} GPU(s)", flush=True)
    try:
        model = HFModelConfig(path=path, trust_remote_code=managed.trust_remote_code)
        replicas: list[Any] = [
            cls(
                replica_rank=rank,
                config=config,
                model_config=model,
                gpus_per_node=managed.n_gpus_per_node,
                name_suffix=_SUFFIX,
            )
            for rank in range(managed.servers)
        ]
        async with asyncio.timeout(managed.start_s):
            await asyncio.gather(*(replica.init_standalone() for replica in replicas))
    except TimeoutError as error:
        raise ManagedTutorError(
            f"the tutor {path} was not up after steer.tutor.managed.start_s={managed.start_s:g} s; raise it if the model is "
            "still being downloaded or loaded"
        ) from error
    except (ray.exceptions.RayError, OSError, ValueError, AssertionError) as error:
        raise ManagedTutorError(f"the tutor {path} (steer.tutor.managed) did not start: {error}") from error
    return replicas


async def hand_over(config: DictConfig, tutor: TutorConfig, replicas: list[Any]) -> DictConfig:
    """The run's configuration with the managed tutor as the endpoint that it now is.

    It is asked for one assessment of a picture first, as preflight asks an endpoint: a tutor that cannot judge must
    not start a training.

    Raises:
        Problem: It gave none.
        ManagedTutorError: A server does not say what it serves.
    """
    from verl_steer.plugin.sample import sample_image

    urls = [f"http://{replica.server_address}/v1" for replica in replicas]
    endpoint = dataclasses.replace(tutor, kind="endpoint", base_urls=tuple(urls), model=await _offered(urls))
    found = await assessment_of(endpoint, "steer.tutor.managed", sample_image())
    print(
        f"verl_steer: the tutor is up at {', '.join(urls)}; a schema-true assessment of a picture in "
        f"{found['latency_s']:.1f} s",
        flush=True,
    )
    changed = copy.deepcopy(config)
    for key in ("kind", "model", "base_urls"):
        value = getattr(endpoint, key)
        OmegaConf.update(
            changed, f"steer.tutor.{key}", list(value) if isinstance(value, tuple) else value, force_add=True
        )
    return changed


async def _offered(urls: list[str]) -> str:
    """The name under which all servers offer the model: an engine's own choice."""
    client = ChatClient("", urls, max_concurrency=1)
    try:
        offers = await client.models()
    finally:
        await client.aclose()
    names = set()
    for url, found in offers.items():
        if not isinstance(found, list) or not found:
            raise ManagedTutorError(f"the tutor's server {url} does not say what it serves: {found or 'no model'}")
        names.add(found[0])
    if len(names) != 1:
        raise ManagedTutorError(f"the tutor's servers offer different models: {', '.join(sorted(names))}")
    return names.pop()


def _check_room(managed: ManagedConfig) -> None:
    """Ray would wait for ever for a place that nobody will free."""
    from verl.plugin.platform import get_platform

    name = get_platform().ray_resource_name()
    free = [
        min(int(node.get(name, 0)), int(node.get("CPU", 0) // _CPUS_A_GPU))
        for node in ray._private.state.available_resources_per_node().values()
    ]
    if sum(free) < managed.gpus:
        raise ManagedTutorError(
            f"the tutor needs {managed.gpus} places of 1 {name} and {_CPUS_A_GPU} CPUs (steer.tutor.managed.nnodes="
            f"{managed.nnodes} x n_gpus_per_node={managed.n_gpus_per_node}), but with the student's pool placed the nodes of "
            f"this cluster have room for {' + '.join(map(str, free)) or '0'} = {sum(free)}"
        )
