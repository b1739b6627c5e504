"""Which part of a LoRA adapter does vLLM apply to a vision-language model? Run in the environment of tests/run.sh --vllm:

    .venv-vllm/bin/python docs/upstream/lora_vllm.py

A tiny random Qwen2.5-VL with an adapter in every linear layer (peft's `all-linear`, verl's default). vLLM
samples with it; peft gives the same tokens' probabilities with the whole adapter, without its vision part, and
without any adapter. Prints the largest difference to each, for replies to pictures and to text.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "vllm_tier"))
from vllm_server import ENVIRONMENT

os.environ.update(ENVIRONMENT)
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

import torch
from PIL import Image
from tiny_model import build_tiny_vlm

RED, BLUE = Image.new("RGB", (56, 56), (200, 30, 30)), Image.new("RGB", (84, 56), (30, 30, 200))
ROWS = {
    "picture": ("what is in it?", [RED]),
    "pictures": ("compare them", [BLUE, RED]),
    "text": ("no picture here", []),
}


def main(folder: Path) -> None:
    """One adapter, vLLM with its default and with `enable_tower_connector_lora`."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText, AutoProcessor

    build_tiny_vlm(folder / "student")
    processor = AutoProcessor.from_pretrained(folder / "student")
    model = AutoModelForImageTextToText.from_pretrained(folder / "student").eval()
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    model.save_pretrained(folder / "adapter")
    for tower in (False, True):
        try:
            sampled = sample(folder, processor, tower)
        except Exception as error:  # a version without the option says so in its own words
            print(json.dumps({"enable_tower_connector_lora": tower, "error": f"{type(error).__name__}: {error}"[:300]}))
            continue
        print(json.dumps({"enable_tower_connector_lora": tower} | compare(model, processor, sampled)))


def prompt(processor: Any, text: str, images: list[Any]) -> str:
    """The chat template's text, a placeholder a picture."""
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": text}]
    return str(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))


def sample(folder: Path, processor: Any, tower: bool) -> dict[str, tuple[list[int], list[float]]]:
    """Token ids and log-probabilities that vLLM samples with the adapter."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    engine = LLM(
        str(folder / "student"),
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=4,
        max_num_batched_tokens=512,
        enable_chunked_prefill=False,
        enable_lora=True,
        max_loras=1,
        max_lora_rank=8,
        limit_mm_per_prompt={"image": 2},
        **({"enable_tower_connector_lora": True} if tower else {}),
    )
    settings = SamplingParams(max_tokens=16, temperature=1.0, seed=3, logprobs=0, ignore_eos=True)
    request = LoRARequest("adapter", 1, str(folder / "adapter"))
    found = {}
    for name, (text, images) in ROWS.items():
        asked: dict[str, Any] = {"prompt": prompt(processor, text, images)}
        if images:
            asked["multi_modal_data"] = {"image": images}
        reply = engine.generate([asked], settings, lora_request=request, use_tqdm=False)[0].outputs[0]
        ids = list(reply.token_ids)
        found[name] = (ids, [step[token].logprob for token, step in zip(ids, reply.logprobs, strict=True)])
    return found


@torch.no_grad()
def compare(model: Any, processor: Any, sampled: dict[str, tuple[list[int], list[float]]]) -> dict[str, Any]:
    """Largest probability difference to peft: {"picture": {"whole": …, "without vision": …, "none": …}, …}."""
    kept = {n: p.clone() for n, p in model.named_parameters() if "lora_B" in n}
    found: dict[str, Any] = {name: {} for name in sampled}
    for variant, dropped in (("whole", None), ("without vision", "visual"), ("none", "")):
        for name, parameter in model.named_parameters():
            if name in kept:
                parameter.copy_(kept[name] if dropped is None or dropped not in name else torch.zeros_like(parameter))
        for name, (ids, log_probs) in sampled.items():
            text, images = ROWS[name]
            inputs = processor(text=[prompt(processor, text, images)], images=images or None, return_tensors="pt")
            inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids])], dim=1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == model.config.image_token_id).int()
            logits = model(**inputs).logits[0, -len(ids) - 1 : -1].float()
            theirs = torch.softmax(logits, -1).gather(-1, torch.tensor(ids)[:, None]).squeeze(-1)
            found[name][variant] = float(f"{float((theirs - torch.tensor(log_probs).exp()).abs().max()):.2e}")
    for name, parameter in model.named_parameters():
        if name in kept:
            parameter.copy_(kept[name])
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
