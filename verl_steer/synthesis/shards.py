"""A build's folder: what is done, what is under way, and the account of both.

plan.json                 what the build depends on; another plan needs another folder
fence.key                 secret of the prompts' fences, mode 0600
candidates/00007.parquet  a finished shard, in the order of its seeds
candidates/00007.json     its account, written last: from then on the shard is done
journals/00007.jsonl      answers of a shard under way, and of one with failures worth another try
failed.jsonl  filtered.jsonl  account.json   of the whole, at the end
splits/                   what the selection made of it
"""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_steer.data.rows import DataError
from verl_steer.synthesis.candidate import Candidate
from verl_steer.synthesis.row import Ended, Harvest
from verl_steer.synthesis.table import read_candidates, to_table
from verl_steer.whole import replacing, write_text


@dataclass
class Account:
    """Counts over branches: branches = candidates + filtered + failed, and each seed is read once.

    Attributes:
        seeds: Rows read.
        unread: Of them, rows that are no valid seed; each counts as one failed branch.
        branches: What the seeds were to be worked into.
        candidates: By pool.
        filtered: By rule.
        failed: Number.
        transient: Of them, those that another try may cure.
        answers, prompt_tokens, completion_tokens: What the models wrote, replays counted once.
    """

    seeds: int = 0
    unread: int = 0
    branches: int = 0
    candidates: Counter[str] = field(default_factory=Counter)
    filtered: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    transient: int = 0
    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Account) -> Account:
        return Account(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    @classmethod
    def of(cls, harvests: Sequence[Harvest], unread: int) -> Account:
        """The account of some seeds."""
        found = cls(seeds=len(harvests), unread=unread)
        for harvest in harvests:
            found.candidates.update(candidate.script.kind.value for candidate in harvest.candidates)
            found.filtered.update(ended.why for ended in harvest.filtered)
            found.failed += len(harvest.failed)
            found.transient += sum(ended.transient for ended in harvest.failed)
            found.branches += len(harvest.candidates) + len(harvest.filtered) + len(harvest.failed)
            found.answers += harvest.usage.answers
            found.prompt_tokens += harvest.usage.prompt_tokens
            found.completion_tokens += harvest.usage.completion_tokens
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Account:
        """Inverse of `to_json`."""
        counters = {name: Counter(stored[name]) for name in ("candidates", "filtered")}
        return cls(**{**stored, **counters})


class Shards:
    """The folder.

    Args:
        out: Made if it does not exist.
        plan: Everything that the candidates depend on.

    Raises:
        DataError: The folder holds another build.
    """

    def __init__(self, out: Path, plan: dict[str, Any]) -> None:
        plan = json.loads(json.dumps(plan))  # as it is read back
        self.out = out
        self._done, self._journals = out / "candidates", out / "journals"
        for folder in (self._done, self._journals):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        mark = out / "plan.json"
        if mark.is_file() and (other := _differs(json.loads(mark.read_text(encoding="utf-8")), plan)):
            raise DataError(f"{out} holds another build ({other} differ); name another folder, or remove this one")
        write_text(mark, json.dumps(plan, indent=1, sort_keys=True))
        self.fence_key = _key(out / "fence.key")

    @classmethod
    def look(cls, out: Path) -> Shards:
        """The folder of a build, as it was begun.

        Raises:
            DataError: It is none.
        """
        mark = out / "plan.json"
        if not mark.is_file():
            raise DataError(f"{out} is no folder of `verl-steer synth build`: it has no plan.json")
        return cls(out, json.loads(mark.read_text(encoding="utf-8")))

    def journal(self, number: int) -> Path:
        """The journal of a shard."""
        return self._journals / f"{number:05d}.jsonl"

    def account(self, number: int) -> Account | None:
        """The account of a shard, if it is done."""
        path = self._done / f"{number:05d}.json"
        if not _whole(path):
            return None
        return Account.from_json(json.loads(path.read_text(encoding="utf-8"))["account"])

    def commit(self, number: int, harvests: Sequence[Harvest], unread: int) -> Account:
        """Writes a shard's results; it is done from the moment its account is there."""
        account = Account.of(harvests, unread)
        path = self._done / f"{number:05d}.parquet"
        with replacing(path) as temporary:
            pq.write_table(to_table(c for harvest in harvests for c in harvest.candidates), temporary)
        ended = {
            name: [asdict(one) for harvest in harvests for one in getattr(harvest, name)]
            for name in ("filtered", "failed")
        }
        stored = {"account": account.to_json(), **ended}
        write_text(self._done / f"{number:05d}.json", json.dumps(stored, ensure_ascii=False, sort_keys=True))
        if not account.transient:
            self.journal(number).unlink(missing_ok=True)
        pa.default_memory_pool().release_unused()  # else the allocator's slack grows with the number of shards
        return account

    def reopen_failed(self) -> int:
        """Takes back the shards that have failures worth another try; their journals hold what was answered."""
        found = [path for path in self._accounts() if self._stored(path)["account"]["transient"]]
        if found:
            (self.out / "account.json").unlink(missing_ok=True)  # of a whole that it will not be again for a while
        for path in found:
            path.unlink()
        return len(found)

    def candidates(self) -> Iterator[Candidate]:
        """All candidates of finished shards, in the order of the seeds."""
        for path in self._accounts():
            yield from read_candidates(path.with_suffix(".parquet"))

    def ended(self, name: str) -> Iterator[Ended]:
        """All branches that ended as `filtered` or `failed`, in the order of the seeds."""
        for path in self._accounts():
            yield from (Ended(**one) for one in self._stored(path)[name])

    def total(self) -> Account:
        """The sum over finished shards."""
        return sum((Account.from_json(self._stored(path)["account"]) for path in self._accounts()), Account())

    def close_account(self) -> Account:
        """Writes the whole's sidecars and account."""
        for name in ("failed", "filtered"):
            with replacing(self.out / f"{name}.jsonl") as temporary, temporary.open("w", encoding="utf-8") as lines:
                lines.writelines(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in self.ended(name))
        total = self.total()
        write_text(self.out / "account.json", json.dumps(total.to_json(), indent=1, sort_keys=True))
        return total

    def answered(self) -> int:
        """Answers in the journals of shards under way."""
        found = 0
        for path in self._journals.glob("*.jsonl"):
            if not _whole(self._done / f"{path.stem}.json"):
                with path.open("rb") as lines:
                    found += sum(1 for _ in lines)
        return found

    def _accounts(self) -> list[Path]:
        return sorted(filter(_whole, self._done.glob("*.json")))

    @staticmethod
    def _stored(path: Path) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found


def _whole(account: Path) -> bool:
    """Whether a shard is done: its account is there, and the candidates that it speaks of."""
    return account.is_file() and account.with_suffix(".parquet").is_file()


def _differs(old: dict[str, Any], new: dict[str, Any]) -> str:
    return ", ".join(sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key)))


def _key(path: Path) -> bytes:
    """Of this build, made once: its prompts must be the same when it is resumed."""
    if not path.is_file():
        with replacing(path) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_bytes(secrets.token_bytes(32))
    return path.read_bytes()
