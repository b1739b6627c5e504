#!/usr/bin/env bash
# Makes .venv in the repository and installs the project into it; does nothing if it is up to date.
#   bash tests/setup.sh [EXTRA]           an extra of pyproject.toml (dev); gpu goes into .venv-gpu
#   bash tests/setup.sh --where [EXTRA]   prints the folder, and installs nothing
# VERL_STEER_VENV names another folder, VERL_STEER_TORCH another torch requirement (on a machine without
# a GPU, point pip at PyTorch's CPU index first: the default build brings several GB of CUDA libraries).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
only_where=""
if [ "${1:-}" = --where ]; then only_where=yes; shift; fi
extra="${1:-dev}"
# vLLM pins another torch than the tests run with: in one environment either install would break the other.
folder=.venv
if [ "$extra" = gpu ]; then folder=.venv-gpu; fi
venv="${VERL_STEER_VENV:-$folder}"
if [ -n "$only_where" ]; then echo "$venv"; exit 0; fi

python=""
for candidate in "${PYTHON:-}" python3.12 python3.11 python3; do
  [ -n "$candidate" ] || continue
  if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then
    python="$candidate"
    break
  fi
done
[ -n "$python" ] || { echo "verl_steer needs Python 3.11 or 3.12; set PYTHON to one" >&2; exit 1; }

stamp="$venv/.verl_steer-$extra"
if [ -f "$stamp" ] && [ "$stamp" -nt pyproject.toml ]; then exit 0; fi
case "$extra" in
  *dev* | *cpu*)
    if [ -f "$venv/.verl_steer-gpu" ]; then
      echo "tests/setup.sh: $venv holds vLLM and its torch (extra gpu, as the quickstart used to install it), and '$extra' would replace that" >&2
      echo "torch. Keep it for GPU runs and set VERL_STEER_VENV to another folder here, or remove it: the quickstart makes .venv-gpu" >&2
      exit 1
    fi
    ;;
esac
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
# The pip of an older Python takes minutes to resolve what a new one resolves in seconds.
pip --upgrade pip
# torch first (with vLLM, verl pins its own): whatever is installed after it must not pull in another build.
if [ "$extra" != gpu ]; then
  "$venv/bin/python" -c 'import torch' 2>/dev/null || pip "${VERL_STEER_TORCH:-torch==2.13.0}"
fi
pip -e ".[$extra]"
# It builds against the installed torch, so it can only come last.
if [ "$extra" = gpu ]; then pip --no-build-isolation flash-attn==2.8.3; fi
touch "$stamp"
