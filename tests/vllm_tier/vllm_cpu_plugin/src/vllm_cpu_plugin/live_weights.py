"""Linear layers that compute with the weight they hold now.

After loading, vLLM's CPU build packs the weight of every linear layer into a copy of its own
(vllm/model_executor/layers/utils.py, `dispatch_cpu_unquantized_gemm`) and then empties the parameter,
so that verl's next weight update finds no place to write; the trainer then waits for ever. The lm_head
keeps its parameter but computes with the packed copy, which an update by itself does not reach. A
rollout server therefore gets plain `F.linear` on the live parameter.

Other vLLM servers, such as the tutor's, receive no weights and keep the packed kernels.
"""

from __future__ import annotations

import os

import torch


def register() -> None:
    """Entry point of `vllm.general_plugins`: called in every vLLM process, possibly several times."""
    # Set by verl's vLLM server before it starts its engine (workers/rollout/vllm_rollout/vllm_async_server.py).
    if "VERL_REPLICA_RANK" not in os.environ:
        return
    from vllm.model_executor.layers import utils

    utils.dispatch_cpu_unquantized_gemm = _keep_weight


def _keep_weight(layer: torch.nn.Module, remove_weight: bool) -> None:
    """Replaces the packing; `remove_weight` is not heeded: the weight is what is computed with."""
    layer.cpu_linear = torch.nn.functional.linear
