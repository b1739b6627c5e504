"""Copies a trainer's weights into the rollout's model, by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import torch
from verl.utils.model import convert_weight_keys


class WeightSync:
    """Receives named tensors in any number of portions; complete only when every parameter came.

    Args:
        model: The rollout's model. verl names weights as the model's checkpoint does
            (verl/utils/model.py:244); the names here are made by the same function.
    """

    def __init__(self, model: Any) -> None:
        self._targets: dict[str, torch.Tensor] = convert_weight_keys(model.state_dict(keep_vars=False), model)
        # A tied head is the embedding under another name; a trainer may send either or both.
        self._storage = {name: tensor.data_ptr() for name, tensor in self._targets.items()}
        self._received: set[int] = set()

    def copy(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Copies one portion.

        Raises:
            KeyError: The model has no weight of that name.
            ValueError: Its shape is another.
        """
        for name, tensor in weights:
            target = self._targets.get(name)
            if target is None:
                close = difflib.get_close_matches(name, self._targets, n=1)
                raise KeyError(f"the trainer sent {name}, which the rollout's model lacks; nearest: {close or 'none'}")
            if target.shape != tensor.shape:
                raise ValueError(f"the trainer sent {name} as {tuple(tensor.shape)}, expected {tuple(target.shape)}")
            with torch.no_grad():
                target.copy_(tensor)
            self._received.add(self._storage[name])

    def finish(self) -> None:
        """Ends one synchronisation.

        Raises:
            RuntimeError: Some weight never came; the model would be a mixture of two steps.
        """
        missing = [name for name, storage in self._storage.items() if storage not in self._received]
        self._received.clear()
        if missing:
            raise RuntimeError(f"the trainer sent no {', '.join(missing[:5])} ({len(missing)} of {len(self._targets)})")
