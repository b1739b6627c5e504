"""Small builds over a served micro-world, for the tests of the stages."""

import asyncio
import copy
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq

from verl_steer.data.splits import LAYOUTS, table
from verl_steer.microworld.server import registry
from verl_steer.synthesis.config import SynthConfig
from verl_steer.synthesis.runner import Build
from verl_steer.testing.server import Completion, error, serve

REVIEW = "reviewer: the tests\ndate: 2026-01-31\ncategories: {picture: true, accumulation: true, pledge: true}\n"


@contextmanager
def microworld(**instead):
    """Every role at one server; `instead` names handlers (body -> text) that replace the rules of a role."""
    handlers = registry() | {f"microworld-{role}": handler for role, handler in instead.items()}

    def answer(body):
        try:
            found = handlers[body["model"]](body)
        except (ValueError, KeyError, TypeError, AttributeError) as fault:  # as the real server does
            return error(400, f"not a prompt of {body['model']}: {fault}")
        return Completion(found) if isinstance(found, str) else found

    with serve(answer, models=list(handlers)) as server:
        yield server


def write_seeds(path, rows):
    """A file of the seed layout, in small row groups."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(LAYOUTS["seed"], rows), path, row_group_size=5)
    return path


def settings_for(server, folder, **more):
    """The plain mapping of a build at `server`."""
    review = Path(folder) / "review.yaml"
    review.parent.mkdir(parents=True, exist_ok=True)
    review.write_text(REVIEW)
    mapping = {
        "roles": {
            "all": {"kind": "microworld", "base_urls": [server.base_url], "timeout_s": 20, "outage_s": 0},
        },
        "red_team": {"review": str(review)},
        "run": {"shard_rows": 4, "rows_in_flight": 6},
    }
    for key, value in copy.deepcopy(more).items():
        mapping[key] = {**mapping[key], **value} if isinstance(mapping.get(key), dict) else value
    return mapping


def build(server, seed_file, out, **more):
    """Runs a build to its end and closes its account; returns (build, account)."""
    made = Build(SynthConfig.from_mapping(settings_for(server, Path(out).parent, **more)), [seed_file], Path(out))
    asyncio.run(made.run(made.open()))
    return made, made.shards.close_account()


def files_of(out):
    """Everything that a finished build leaves, but for its secret and its journals."""
    kept = [path for path in sorted(Path(out).rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in kept
        if path.name != "fence.key" and path.parent.name != "journals"
    }
