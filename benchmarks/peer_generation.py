"""Other generation pipelines on the same prompts, beside benchmarks/synthesis.py; run by an environment that has them.

    python -m venv peers && peers/bin/pip install distilabel[openai]        # or bespokelabs-curator
    python benchmarks/synthesis.py --peer distilabel=peers/bin/python

It imports nothing of this project: prompts come as JSON on stdin, calls a second go to stdout.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from typing import Any


def distilabel(root: str, prompts: list[str], in_flight: int) -> float:
    """Its pipeline: load, generate."""
    from distilabel.models import OpenAILLM
    from distilabel.pipeline import Pipeline
    from distilabel.steps import LoadDataFromDicts
    from distilabel.steps.tasks import TextGeneration

    with Pipeline(name="peer") as pipeline:
        rows = LoadDataFromDicts(data=[{"instruction": text} for text in prompts], batch_size=in_flight)
        llm = OpenAILLM(model="mock", base_url=f"{root}/v1", api_key="none")
        rows >> TextGeneration(llm=llm, input_batch_size=in_flight)
    started = time.perf_counter()
    found = pipeline.run(use_cache=False)
    seconds = time.perf_counter() - started
    done = sum(bool(row["generation"]) for row in found["default"]["train"])
    assert done == len(prompts), f"{done} of {len(prompts)} answered"
    return done / seconds


def curator(root: str, prompts: list[str], in_flight: int) -> float:
    """Its LLM over a data set."""
    os.environ |= {"OPENAI_API_KEY": "none", "CURATOR_DISABLE_CACHE": "1", "TELEMETRY_ENABLED": "0"}
    from bespokelabs import curator as package

    limits = {"max_requests_per_minute": 10**7, "max_tokens_per_minute": 10**9, "max_concurrent_requests": in_flight}
    llm = package.LLM(
        model_name="openai/mock",
        backend="litellm",
        backend_params={"base_url": f"{root}/v1", **limits},
    )
    started = time.perf_counter()
    found: Any = llm(prompts)
    seconds = time.perf_counter() - started
    data = getattr(found, "dataset", found)
    done = sum(bool(text) for text in data["response"])
    assert done == len(prompts), f"{done} of {len(prompts)} answered"
    return done / seconds


if __name__ == "__main__":
    name, root, in_flight = sys.argv[1], sys.argv[2], int(sys.argv[3])
    given = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CURATOR_CACHE_DIR"] = folder
        rate = {"distilabel": distilabel, "curator": curator}[name](root, given, in_flight)
    print(json.dumps({"calls_per_s": round(rate, 1)}))
