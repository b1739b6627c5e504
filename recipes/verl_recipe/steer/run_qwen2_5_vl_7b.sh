#!/usr/bin/env bash
# Qwen2.5-VL-7B on 8 GPUs; the tutor is served elsewhere, behind any OpenAI-compatible address.
#   TRAIN_FILES, VAL_FILES  parquet files of STEER rows (verl-steer data convert)
#   MODEL_PATH              the student after SFT
#   TUTOR_URL               e.g. http://tutor-0:8000/v1;  TUTOR_MODEL the name it is served under
set -xeuo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

python3 -m verl.trainer.main_ppo --config-path "$here/config" --config-name steer_trainer \
  data.train_files="$TRAIN_FILES" \
  data.val_files="$VAL_FILES" \
  actor_rollout_ref.model.path="$MODEL_PATH" \
  steer.tutor.model="${TUTOR_MODEL:-Qwen/Qwen3-VL-32B-Instruct}" \
  "steer.tutor.base_urls=[$TUTOR_URL]" \
  "$@"
