#!/usr/bin/env bash
# As run_qwen2_5_vl_7b.sh, with the tutor on 8 more GPUs of the same Ray cluster, served by verl's own rollout servers.
#   TRAIN_FILES, VAL_FILES, MODEL_PATH  as there
#   TUTOR_MODEL                         the tutor's folder or hub id
set -euo pipefail
export TUTOR_URL=""
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_qwen2_5_vl_7b.sh" \
  steer.tutor.kind=managed \
  steer.tutor.managed.engine=vllm \
  steer.tutor.managed.nnodes=1 \
  steer.tutor.managed.n_gpus_per_node=8 \
  steer.tutor.managed.tensor_parallel=4 \
  steer.tutor.managed.max_model_len=32768 \
  "$@"
