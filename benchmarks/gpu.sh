#!/usr/bin/env bash
# Real sizes on one GPU of 80 GB: a student with Qwen2.5-VL-3B's geometry and random weights, 3 steps of steer_grpo
# with the transformers rollout and, where vLLM is installed, with vLLM, beside verl's own single-turn loop.
#
#   bash benchmarks/gpu.sh             # writes the figures into docs/gpu.md
#   bash benchmarks/gpu.sh --tiny      # (or --quick) the same script on the CPU with a tiny geometry; docs/gpu.md stays as it is
#
# Runs in .venv-gpu (--tiny: .venv), made if it is missing, or in the environment of PYTHON. Other options: python benchmarks/gpu.py --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tiny=""
for argument in "$@"; do
  case "$argument" in --tiny | --quick) tiny=yes ;; esac
done

if [ -n "$tiny" ]; then
  export VERL_STEER_DEVICE=cpu
  extra=dev
elif command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then
  extra=gpu
else
  echo "benchmarks/gpu.sh: nvidia-smi finds no GPU here; run it on a machine with one, or with --tiny on the CPU" >&2
  exit 1
fi
if [ -z "${PYTHON:-}" ]; then
  bash tests/setup.sh "$extra"
  PYTHON="$(bash tests/setup.sh --where "$extra")/bin/python"
fi
exec "$PYTHON" benchmarks/gpu.py "$@"
