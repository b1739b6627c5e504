"""kill -9 at random instants: the same bytes as an undisturbed build, and no stored call is made again."""

import json
import os
import random
import signal
import subprocess
import sys
import time

from interrupts import hear_ctrl_c
from synthesis_builds import files_of, microworld, settings_for

from verl_steer.chat.client import seed_of

KILLS = int(os.environ.get("VERL_STEER_KILLS", "3"))  # 20 for the figure in docs/synthesis.md
_PROGRAM = """
import asyncio, json, sys
from pathlib import Path
from verl_steer.synthesis.config import SynthConfig
from verl_steer.synthesis.runner import Build
settings, seeds, out = json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
build = Build(SynthConfig.from_mapping(settings), [seeds], out)
print("ready", flush=True)
asyncio.run(build.run(build.open()))
build.shards.close_account()
"""


def stored_calls(out):
    """(model, seed of the request) of every answer in the journals; a torn last line was never stored."""
    lines = [line for path in (out / "journals").glob("*.jsonl") for line in path.read_bytes().split(b"\n")[:-1]]
    return {(f"microworld-{kept['step']}", seed_of(kept["row"])) for kept in map(json.loads, lines)}


def call_of(body):
    """What names a call; the rules' replies need no repair, so a call is one request."""
    return body["model"], body["seed"]


def test_a_build_killed_at_any_instant_goes_on_as_if_nothing_had_happened(finished, seed_file, tmp_path):
    whole, _, undisturbed = finished
    out, repeated = tmp_path / "out", []
    instants = sorted(random.Random(KILLS).sample(range(1, int(0.95 * len(undisturbed))), KILLS))
    with microworld() as server:
        settings = settings_for(server, tmp_path)
        command = [sys.executable, "-c", _PROGRAM, json.dumps(settings), str(seed_file), str(out)]
        for kill in range(KILLS + 1):
            before, stored = len(server.requests), stored_calls(out)
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            if kill < KILLS:
                while process.poll() is None and len(server.requests) < instants[kill]:
                    time.sleep(0.001)
                process.send_signal(signal.SIGKILL)
            assert process.wait() == (-signal.SIGKILL if kill < KILLS else 0)
            while server.outstanding:  # what was on its way still arrives
                time.sleep(0.001)
            earlier, asked = server.requests[:before], [call_of(body) for body in server.requests[before:]]
            assert not set(asked) & stored
            repeated.append(len(set(asked) & set(map(call_of, earlier))))
    assert files_of(out) == files_of(whole)
    # Asked twice was only what a kill had met under way: one call a row.
    assert max(repeated) <= settings["run"]["rows_in_flight"]
    assert len(server.requests) == len(undisturbed) + sum(repeated)
    assert set(map(call_of, server.requests)) == set(map(call_of, undisturbed))
    print(f"{KILLS} kills: {len(undisturbed)} calls undisturbed, {sum(repeated)} asked twice")


def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(finished, seed_file, tmp_path):
    whole, _, undisturbed = finished
    with microworld() as server:
        (tmp_path / "build.yaml").write_text(json.dumps(settings_for(server, tmp_path)))
        command = [sys.executable, "-m", "verl_steer.cli", "synth", "build", str(tmp_path / "build.yaml")]
        command += ["--seeds", str(seed_file), "--out", str(tmp_path / "out"), "--no-select"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c)
        while process.poll() is None and len(server.requests) < len(undisturbed) // 2:
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130 and said == "\nverl-steer: stopped; the same command goes on where it was\n"
        half = len(server.requests)
        assert subprocess.run(command, check=False).returncode == 0
    assert half < len(undisturbed)
    assert files_of(tmp_path / "out") == files_of(whole)
