"""patches/equal-length-position-ids.patch"""

import pytest
import torch
from tensordict import TensorDict


def fixed(rows):
    from verl.utils.tensordict_utils import maybe_fix_3d_position_ids

    nested = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
    data = TensorDict({"position_ids": nested}, batch_size=len(rows))
    maybe_fix_3d_position_ids(data)
    return data["position_ids"]


@pytest.mark.unpatched("Tensor-likes are not close|do not match|split_with_sizes")
@pytest.mark.parametrize("batch", [2, 3, 4])
@pytest.mark.parametrize("length", [4, 7])
def test_samples_of_one_length_keep_their_positions(batch, length):
    rows = [torch.arange(4 * length).view(4, length) + 1000 * i for i in range(batch)]
    position_ids = fixed(rows)
    assert position_ids._ragged_idx == 2
    torch.testing.assert_close(position_ids.values(), torch.cat(rows, dim=1))
    for row, found in zip(rows, position_ids.unbind(), strict=True):
        torch.testing.assert_close(found, row)


def test_samples_of_several_lengths_are_what_they_were():
    from verl.utils.tensordict_utils import maybe_fix_3d_position_ids, nested_tensor_from_tensor_list

    rows = [torch.arange(20).view(4, 5), torch.arange(12).view(4, 3)]
    nested = nested_tensor_from_tensor_list(rows, ragged_idx=2)
    nested._ragged_idx = 1  # as it comes out of a pickle
    data = TensorDict({"position_ids": nested}, batch_size=2)
    maybe_fix_3d_position_ids(data)
    for row, found in zip(rows, data["position_ids"].unbind(), strict=True):
        torch.testing.assert_close(found, row)
