#!/usr/bin/env bash
# From a fresh clone to a learning curve: installs into .venv (with a GPU into .venv-gpu), trains the embedded default with
# verl's own entry point, and says where everything lies. Works with or without a GPU.
# Further arguments are Hydra overrides, e.g.: bash examples/quickstart.sh trainer.total_training_steps=5
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extra=cpu
if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then
  extra=gpu
else
  export VERL_STEER_DEVICE=cpu
fi
venv="$(bash tests/setup.sh --where "$extra")"
echo "verl_steer quickstart: installing into $venv (extra: $extra) ..."
bash tests/setup.sh "$extra"
python="$venv/bin/python"

out="checkpoints/verl_steer/quickstart"
for argument in "$@"; do
  case "$argument" in trainer.default_local_dir=*) out="${argument#*=}" ;; esac
done
"$python" -m verl.trainer.main_ppo +recipe=steer_grpo trainer.default_local_dir="$out" "$@"

curve=$("$python" -m verl_steer.cli records plot "$out/records")
step=$(cat "$out/latest_checkpointed_iteration.txt")
cat <<END

Done. What the run left behind:
  checkpoint        $out/global_step_$step   (Hugging Face format: $out/global_step_$step/actor/huggingface)
  dialogue records  $out/records
  learning curve    $curve
END
