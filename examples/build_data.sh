#!/usr/bin/env bash
# STEER-SFT, STEER-RL and STEER-Bench at a tenth of the paper's sizes, from micro-world seeds, with no model at hand:
# starts the server that plays every role, builds, stops it. The same command resumes. A first argument names the
# folder; further ones go to `verl-steer synth build`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out="${1:-outputs/steer_microworld}"
shift || true
# No GPU is needed: with .venv-gpu alone, that one will do.
if [ ! -x .venv/bin/python ] && [ -x .venv-gpu/bin/python ]; then export VERL_STEER_VENV="${VERL_STEER_VENV:-.venv-gpu}"; fi
python="$(bash tests/setup.sh --where)/bin/python"
if ! "$python" -c 'import datasketch, uvicorn' 2>/dev/null; then
  extra=cpu,synth
  if [ -x "$python" ]; then extra=synth; fi # an environment of the quickstart, with or without a GPU, serves already
  bash tests/setup.sh "$extra"
fi
port=8123 # as in examples/conf/build_microworld.yaml
mkdir -p "$out"

"$python" -m verl_steer.cli synth seeds-microworld --count 1000 --seed 1 --out "$out/seeds/train.parquet"
"$python" -m verl_steer.cli synth seeds-microworld --count 200 --seed 2 --source microworld-bench --out "$out/seeds/bench.parquet"

"$python" -m verl_steer.cli serve microworld --port "$port" &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT
for _ in $(seq 150); do
  kill -0 "$server" 2>/dev/null || { echo "the server did not start: is port $port in use?" >&2; exit 1; }
  if "$python" - "$port" <<'END'
import sys, urllib.request
try:
    urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/health", timeout=2)
except OSError:
    raise SystemExit(1)
END
  then break; fi
  sleep 0.2
done

"$python" -m verl_steer.cli synth build examples/conf/build_microworld.yaml \
  --seeds "$out/seeds/train.parquet" "$out/seeds/bench.parquet" --out "$out/build" "$@"
echo "splits, cards and the table of removals: $out/build/splits"
