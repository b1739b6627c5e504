"""The cache: equal questions at temperature 0 are asked once, over runs and within one.

Content-addressed: the key is the SHA-256 of model, messages, sampling and schema. SQLite in WAL mode, so
several processes of one machine may share it; the values are JSON. It is for synthesis and the bench, never
for training, where the same prompt met twice must be judged twice. Servers are not part of the key: the same
name is taken for the same model, so name a `namespace` when what stands behind a name changes.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Unpack

from verl_steer.chat.client import CallOptions, Chat, Message
from verl_steer.chat.content import FINAL, digest_of, result_from_dict, result_to_dict, sampling_of
from verl_steer.chat.deadline import Deadline
from verl_steer.chat.outcome import ChatResult, Outcome

# WAL keeps its index in shared memory, which processes on two machines do not share: corruption, not slowness.
NETWORK_DISKS = frozenset(
    (
        *("nfs", "nfs4", "cifs", "smb2", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "wekafs"),
        *("afs", "orangefs", "pvfs2", "ocfs2", "gfs2", "9p"),
        *(f"fuse.{name}" for name in ("sshfs", "glusterfs", "ceph", "s3fs", "gcsfuse", "juicefs", "weka")),
    )
)

OPENING_S = 30.0  # how long another process that opens the same new file is waited for


class CacheError(RuntimeError):
    """The cache cannot be used; the message names the file and what to do."""


class ReplyCache:
    """The file.

    Args:
        path: Made if it does not exist, mode 0600; on a local disk.
        namespace: Part of every key.

    Raises:
        CacheError: It lies on a network disk, is no cache, or cannot be written.
    """

    def __init__(self, path: str | Path, namespace: str = "") -> None:
        self.path = Path(path).expanduser()
        self.namespace = namespace
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if (disk := disk_of(self.path.parent)) in NETWORK_DISKS:
            raise CacheError(f"{self.path} lies on a network disk ({disk}), where SQLite corrupts; choose a local one")
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite's side files take its mode
            self._db = sqlite3.connect(self.path, timeout=30.0, isolation_level=None)
            mode = self._into_wal_mode()
            if mode != "wal":
                raise CacheError(
                    f"{self.path}: this disk has no shared memory for SQLite (journal mode {mode}); choose another"
                )
            self._db.execute("PRAGMA synchronous=NORMAL")  # a power cut may lose the newest answers, never the file
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS reply (digest TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"
            )
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from error

    def __len__(self) -> int:
        return int(self._run("SELECT count(*) FROM reply").fetchone()[0])

    def get(self, digest: str) -> ChatResult | None:
        """The answer kept under a digest, or None."""
        row = self._run("SELECT value FROM reply WHERE digest = ?", digest).fetchone()
        try:
            return None if row is None else result_from_dict(json.loads(row[0]))
        except (ValueError, KeyError, TypeError) as error:
            raise CacheError(f"{self.path}: the entry {digest} is damaged ({error}); remove the file") from error

    def put(self, digest: str, found: ChatResult) -> None:
        """Keeps an answer, in place of one that is there already."""
        self._run("INSERT OR REPLACE INTO reply VALUES (?, ?)", digest, json.dumps(result_to_dict(found)))

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    def _into_wal_mode(self) -> str:
        # SQLite's own patience (`timeout`) does not cover this statement: two processes that open a new file at
        # once would both hold it for reading and wait for the other to let go, so one is told "locked" at once.
        until = time.monotonic() + OPENING_S
        while True:
            try:
                return str(self._db.execute("PRAGMA journal_mode=WAL").fetchone()[0])
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
                time.sleep(0.01)

    def _run(self, statement: str, *values: str) -> sqlite3.Cursor:
        try:
            return self._db.execute(statement, values)
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> CacheError:
        return CacheError(f"{self.path} cannot be used as a cache ({error}); remove it or name another")


def is_final(found: ChatResult) -> bool:
    """Whether the model has spoken."""
    return found.outcome in FINAL


class Cached:
    """`Chat` that asks equal questions at temperature 0 once; others pass through.

    Equal questions under way at the same time share one request: the later ones wait for it, and one of
    them asks for itself if it brings no answer. While that request queues or waits out an outage, none of
    their clocks runs: each would have waited there itself.

    Args:
        chat: Who answers what the cache does not hold.
        cache: Shared by all clients of a process.
        usable: Which answers are kept, and given again where the file holds them already; others are asked for again.
    """

    def __init__(self, chat: Chat, cache: ReplyCache, usable: Callable[[ChatResult], bool] = is_final) -> None:
        self.model = chat.model
        self._usable = usable
        self.hits = 0
        self.misses = 0
        self._chat = chat
        self._cache = cache
        self._under_way: dict[str, tuple[Deadline, asyncio.Event]] = {}

    async def complete(self, messages: Sequence[Message], **call: Unpack[CallOptions]) -> ChatResult:
        """As `ChatClient.complete`; a hit has `calls` 0."""
        if call.get("temperature", 0.0) != 0:
            self.misses += 1
            return await self._chat.complete(messages, **call)
        digest = digest_of([self._cache.namespace, self.model, messages, *sampling_of(call)])
        clock, deadline_s = asyncio.get_running_loop().time, call["deadline_s"]
        began, own = clock(), Deadline(deadline_s, call.get("within"))
        try:
            async with own:
                while (known := self._known(digest)) is None and digest in self._under_way:
                    asked, over = self._under_way[digest]
                    with asked.shared_with(own):
                        await over.wait()
        except TimeoutError:
            latency_s, detail = clock() - began, f"no answer to an equal question within {deadline_s:.3g} s"
            return ChatResult(Outcome.TIMEOUT, latency_s=latency_s, detail=detail, waited_s=latency_s - deadline_s)
        if known is not None:
            self.hits += 1
            return known
        return await self._ask(digest, own, messages, call)

    async def _ask(self, digest: str, own: Deadline, messages: Sequence[Message], call: CallOptions) -> ChatResult:
        """Asks, for all who wait: `own` passes the pauses of the call on to them."""
        over = asyncio.Event()
        self._under_way[digest] = own, over  # nothing was awaited since nobody was found to ask
        self.misses += 1
        call["deadline_s"], call["within"] = own.left(), own
        try:
            found = await self._chat.complete(messages, **call)
            if self._usable(found):
                self._cache.put(digest, found)
            return found
        finally:
            del self._under_way[digest]
            over.set()

    def _known(self, digest: str) -> ChatResult | None:
        known = self._cache.get(digest)
        return known if known is not None and self._usable(known) else None

    async def aclose(self) -> None:
        """Closes what is below; the cache is its owner's to close."""
        await self._chat.aclose()


def disk_of(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The type of the file system that `folder` lies on, as Linux names it; "" where that cannot be told."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    place, best = folder.resolve(), ("", "")
    for line in lines:
        _, point, kind, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        if place.is_relative_to(point) and len(point) >= len(best[0]):
            best = (point, kind)
    return best[1]
