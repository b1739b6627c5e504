"""A key-value cache of slots: each holds one sequence from its first token, at its own length.

transformers' caches keep one length for a whole batch, so sequences of different lengths have to be
padded on the left and none can join or leave. Here a forward pass names the slots that take part and
where each of them writes; the attention mask hides what lies beyond a slot's length.
"""

from __future__ import annotations

import torch
from transformers.cache_utils import Cache

LENGTH_STEP = 128


class SlotCache(Cache):
    """Keys and values of every layer, (slots, heads, capacity, head dimension) each; grows as needed."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []
        self._slots = torch.zeros(0, dtype=torch.long)
        self._starts = torch.zeros(0, dtype=torch.long)
        self._width = 0
        self._n_slots = 0

    def select(self, slots: list[int], starts: list[int], width: int, n_slots: int) -> None:
        """Names the slots of the coming forward pass.

        Args:
            slots: One slot a row of the batch.
            starts: Where each row's first new token goes; what lies before stays.
            width: Keys that attention reads, from position 0: at least the longest row with its new tokens.
            n_slots: How many slots the cache needs to have.
        """
        self._slots, self._starts = torch.tensor(slots), torch.tensor(starts)
        self._width, self._n_slots = width, n_slots

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes (rows, heads, new, head dimension) and returns the rows' first `width` positions."""
        new = key_states.shape[2]
        positions = self._starts.unsqueeze(-1) + torch.arange(new)
        self._reserve(layer_idx, key_states, value_states, int(positions.max()) + 1)
        rows = self._slots.unsqueeze(-1).expand_as(positions)
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        keys[rows, :, positions] = key_states.transpose(1, 2)
        values[rows, :, positions] = value_states.transpose(1, 2)
        return keys[self._slots, :, : self._width], values[self._slots, :, : self._width]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Of the widest row; transformers asks for it when it is given no positions."""
        return self._width

    def drop(self) -> None:
        """Forgets everything and gives the memory back."""
        self._keys.clear()
        self._values.clear()

    def _reserve(self, layer: int, key: torch.Tensor, value: torch.Tensor, length: int) -> None:
        length = max(length, self._width)
        while len(self._keys) <= layer:
            self._keys.append(key.new_zeros(0, key.shape[1], 0, key.shape[3]))
            self._values.append(value.new_zeros(0, value.shape[1], 0, value.shape[3]))
        have_slots, _, have_length, _ = self._keys[layer].shape
        if have_slots >= self._n_slots and have_length >= length:
            return
        slots = max(have_slots, self._n_slots)
        capacity = max(have_length, -(-length // LENGTH_STEP) * LENGTH_STEP)
        for store in (self._keys, self._values):
            old = store[layer]
            grown = old.new_zeros(slots, old.shape[1], capacity, old.shape[3])
            grown[:have_slots, :, :have_length] = old
            store[layer] = grown
