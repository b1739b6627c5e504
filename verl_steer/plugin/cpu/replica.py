"""A rollout replica: starts one server actor beside the trainer's workers."""

from __future__ import annotations

import ray
from verl.workers.rollout.replica import RolloutReplica

from verl_steer.plugin.cpu.server import HfServer


class HfReplica(RolloutReplica):
    """One `HfServer`, whatever tensor parallelism says: the workers of a replica share it."""

    async def launch_servers(self) -> None:
        """Starts the server on the node of the replica's first worker."""
        node_id = await self.workers[0].__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id())
        server = (
            ray.remote(HfServer)
            .options(
                scheduling_strategy=ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id, soft=False),
                name=server_name(self.replica_rank, self.is_reward_model, self.is_teacher_model, self.name_suffix),
                max_concurrency=self.max_concurrency,
            )
            .remote(config=self.config, model_config=self.model_config, replica_rank=self.replica_rank)
        )
        process = await server.ready.remote()
        self.servers = [server]
        self._server_handle = server
        # No HTTP: verl only keys its load balancer by this.
        self._server_address = f"hf-{node_id[:8]}-{process}"


def server_name(replica_rank: int, reward: bool = False, teacher: bool = False, suffix: str = "") -> str:
    """The actor's name, by which the trainer's side finds it."""
    role = "reward_" if reward else "teacher_" if teacher else ""
    return f"hf_server_{role}{replica_rank}{suffix}"
