"""How far apart are rollout and trainer if part of a LoRA adapter does not arrive? Without vLLM, by peft alone:

    python docs/upstream/lora_parts.py

A tiny random Qwen2.5-VL, an adapter of rank 8 in every linear layer, one AdamW step of a policy gradient. Then
the probabilities of 20 reply tokens a row (one picture, two pictures, none) with the whole adapter, against those
of a rollout that lacks a part of it and, as verl's vLLM patch does, masks the picture tokens before the softmax.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "plugin"))
from test_hf_rollout import BLUE, RED, Student
from tiny_model import build_tiny_vlm

ROWS = [("a question about a picture", [RED]), ("two of them " * 3, [BLUE, RED]), ("no picture", [])]


def main(folder: Path) -> None:
    """Prints a line a case."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    student = Student(build_tiny_vlm(folder))
    batch = [row_of(student, text, images) for text, images in ROWS]
    masked = torch.zeros(student.model.get_output_embeddings().weight.shape[0], dtype=torch.bool)
    masked[[student.model.config.image_token_id, student.model.config.video_token_id]] = True
    model = get_peft_model(student.model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for advantage, row in zip((1.0, -1.0, 1.0), batch, strict=True):
        (-advantage * taken(model, row).log().sum()).backward()
    optimizer.step()
    whole = all_taken(model, batch)
    cases = {"all of it arrives": None, "the vision tower's part is lost": "visual", "nothing arrives": ""}
    for case, lost in cases.items():
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if lost is not None and "lora_B" in name and lost in name:
                    parameter.zero_()
        for mask in (None, masked):
            there = all_taken(model, batch, mask)
            difference = (there - whole).abs()
            correlation = float(torch.corrcoef(torch.stack([there, whole]))[0, 1])
            words = "picture tokens masked" if mask is not None else "not masked"
            print(f"{case}, {words}: largest {difference.max():.1e}, correlation {correlation:.6f}")


def row_of(student: Student, text: str, images: list[Any]) -> dict[str, Any]:
    """Model inputs: the prompt and 20 reply tokens."""
    features = student.processor.image_processor(images=images, return_tensors="pt") if images else {}
    ids = torch.tensor([student.tokens(text, images) + list(range(40, 60))])
    return {"input_ids": ids, "mm_token_type_ids": (ids == student.model.config.image_token_id).int(), **features}


def taken(model: Any, row: dict[str, Any], mask: torch.Tensor | None = None) -> torch.Tensor:
    """(20,) probabilities of the reply's tokens."""
    logits = model(**row).logits[0, :-1].float()
    if mask is not None:
        logits = logits.masked_fill(mask, float("-inf"))
    return torch.softmax(logits, -1).gather(-1, row["input_ids"][0, 1:, None]).squeeze(-1)[-20:]


@torch.no_grad()
def all_taken(model: Any, batch: list[dict[str, Any]], mask: torch.Tensor | None = None) -> torch.Tensor:
    """(60,) of the whole batch."""
    return torch.cat([taken(model, row, mask) for row in batch])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
