"""patches/sft-image-less-first-row.patch"""

import pytest
import torch


def row(length, pictures=0):
    made = {"input_ids": torch.arange(length), "loss_mask": torch.ones(length, dtype=torch.int64)}
    if pictures:
        made["multi_modal_inputs"] = {"pixel_values": torch.full((4 * pictures, 6), float(length))}
    return made


def collated(*rows):
    from verl.utils.dataset.dataset_utils import DatasetPadMode, SFTTensorCollator

    return SFTTensorCollator(DatasetPadMode.NO_PADDING)(list(rows))


def pixels(batch):
    from verl.utils.model import extract_multi_modal_inputs

    return extract_multi_modal_inputs(list(batch["multi_modal_inputs"]))["pixel_values"]


@pytest.mark.unpatched("KeyError: 'multi_modal_inputs'")
def test_the_first_row_of_a_batch_may_be_without_a_picture():
    batch = collated(row(3), row(5, pictures=1), row(2), row(4, pictures=2))
    assert [len(ids) for ids in batch["input_ids"].unbind()] == [3, 5, 2, 4]
    assert pixels(batch)[:, 0].tolist() == [5.0] * 4 + [4.0] * 8


def test_a_later_row_without_a_picture_passes_as_before():
    assert pixels(collated(row(5, pictures=1), row(3)))[:, 0].tolist() == [5.0] * 4


def test_a_batch_without_any_picture_has_no_such_field():
    assert "multi_modal_inputs" not in collated(row(3), row(4))
