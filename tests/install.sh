#!/usr/bin/env bash
# The built wheel, in a clean environment and another directory, works as the clone does: two steps of the
# embedded default through main_ppo, then the doctor. For a release.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python="${PYTHON:-python3}"
"$python" -m venv "$work/venv"
pip() { "$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
pip --upgrade pip
pip "${VERL_STEER_TORCH:-torch==2.13.0}"
"$work/venv/bin/python" -m pip wheel --quiet --no-deps --wheel-dir "$work" .
pip "$(echo "$work"/verl_steer-*.whl)[cpu]"
mkdir "$work/elsewhere"
cd "$work/elsewhere"
export PATH="$work/venv/bin:$PATH"
if ! command -v nvidia-smi >/dev/null 2>&1; then export VERL_STEER_DEVICE=cpu; fi
python -c 'import verl_steer; print("verl_steer from", verl_steer.__file__)' | grep "$work/venv"
python -m verl.trainer.main_ppo +recipe=steer_grpo trainer.total_training_steps=2 trainer.val_before_train=false trainer.test_freq=-1
test -s checkpoints/verl_steer/steer_grpo-seed1/records/train/step_000002.jsonl
verl-steer records plot checkpoints/verl_steer/steer_grpo-seed1/records
verl-steer doctor +recipe=steer_grpo
echo "the wheel works"
