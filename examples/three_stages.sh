#!/usr/bin/env bash
# The three stages on the micro-world: base student, Stage II (verl's SFT trainer), Stage III (main_ppo), and the ablations,
# each benched by the oracle. One JSON file a run in evidence/runs; what exists is not repeated, so the same command goes on.
#   bash examples/three_stages.sh --fast                       # one seed, three arms, small
#   bash examples/three_stages.sh --seeds 100 101 --arms full script --results outputs/development
# Then `verl-steer stages evidence` writes docs/evidence.md from the files.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${VERL_STEER_VENV:-.venv}/bin/python"
if ! "$python" -c 'import verl, uvicorn, scipy, datasketch, matplotlib' 2>/dev/null; then
  bash tests/setup.sh cpu,synth,bench
fi
# The student has a million parameters; a GPU build of torch would look for a GPU.
export VERL_STEER_DEVICE="${VERL_STEER_DEVICE:-cpu}"
exec "$python" -m verl_steer.cli stages run "$@"
