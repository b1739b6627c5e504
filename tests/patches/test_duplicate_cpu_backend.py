"""patches/duplicate-cpu-backend.patch"""

import pytest
import torch


@pytest.mark.unpatched("Duplicate device type cpu")
@pytest.mark.parametrize("function", ["initialize_global_process_group", "initialize_global_process_group_ray"])
def test_a_process_group_starts_where_the_device_is_the_cpu(function, one_rank, monkeypatch):
    from verl.utils import distributed

    monkeypatch.setattr(distributed, "get_device_name", lambda: "cpu")
    monkeypatch.setattr(distributed, "get_nccl_backend", lambda: "gloo")
    monkeypatch.setattr(distributed, "get_torch_device", lambda: torch.cpu)
    getattr(distributed, function)(timeout_second=60)
    tensor = torch.tensor([2.0])
    torch.distributed.all_reduce(tensor)
    assert tensor.item() == 2.0


@pytest.mark.parametrize("function", ["initialize_global_process_group", "initialize_global_process_group_ray"])
def test_an_accelerator_keeps_its_backend_beside_gloo(function, one_rank, monkeypatch):
    from verl.utils import distributed

    asked = {}
    monkeypatch.setattr(distributed, "get_device_name", lambda: "cuda")
    monkeypatch.setattr(distributed, "get_nccl_backend", lambda: "nccl")
    monkeypatch.setattr(distributed, "get_torch_device", lambda: torch.cpu)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda **options: asked.update(options))
    getattr(distributed, function)(timeout_second=60)
    assert asked["backend"] == "cpu:gloo,cuda:nccl"
