"""A rollout replica of verl's that speaks chat completions with transformers: the tutor's engine `hf`.

verl's vLLM and SGLang servers have an OpenAI-compatible face of their own. This one gives `local/server.py` (what
`verl-steer serve checkpoint` runs) the same shape, so that a managed tutor needs no other way where no serving
engine is installed, a machine without a GPU among them. The server runs inside the pool's worker: one process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
from verl.single_controller.base import Worker
from verl.single_controller.ray import RayClassWithInitArgs
from verl.utils.net_utils import is_valid_ipv6_address
from verl.workers.rollout.replica import RolloutReplica
from verl.workers.rollout.utils import run_uvicorn

from verl_steer.local.chat import LocalChat
from verl_steer.local.server import create_app


class ChatWorker(Worker):
    """One process with the model in it.

    Args:
        folder: A Hugging Face folder or hub id.
        batch_size: Requests generated at once.
    """

    def __init__(self, folder: str, batch_size: int) -> None:
        super().__init__()
        self._chat = LocalChat(Path(folder), Path(folder).name, batch_size=batch_size)

    async def serve(self) -> str:
        """Loads the model and serves it; host:port of the server, which lives as long as this process."""
        await self._chat.load()
        host = ray.util.get_node_ip_address().strip("[]")
        port, self._task = await run_uvicorn(create_app(self._chat), None, host)
        return f"[{host}]:{port}" if is_valid_ipv6_address(host) else f"{host}:{port}"


class HfChatReplica(RolloutReplica):
    """One `ChatWorker`."""

    def get_ray_class_with_init_args(self) -> RayClassWithInitArgs:
        """The pool's worker: the server itself, since no trainer sends it weights."""
        return RayClassWithInitArgs(
            cls=ray.remote(ChatWorker), folder=str(self.model_config.local_path), batch_size=self.config.max_num_seqs
        )

    async def launch_servers(self) -> None:
        """Starts the server in the pool's worker."""
        worker: Any = self.workers[0]
        self._server_address = await worker.serve.remote()
        self._server_handle = worker
        self.servers = [worker]
