#!/usr/bin/env bash
# Sets up and runs the tests.
#   bash tests/run.sh            everything that needs neither a GPU nor vLLM, but for the heavy tests
#   bash tests/run.sh --quick    without the tests that train, too
#   bash tests/run.sh --heavy    the heavy tests alone: long runs whose properties have smaller tests in the default run
#   bash tests/run.sh --patched  everything, the heavy tests too, on a copy of the pinned verl with all of patches/ applied
#   bash tests/run.sh --vllm     verl's vLLM rollout, a real vLLM tutor, and a bench whose model and judge are on vLLM;
#                                on the CPU, in .venv-vllm
#   bash tests/run.sh --algorithms   every row of the algorithm table, two real steps each, and the page made from them
# Further arguments go to pytest. A selection of yours (-k, paths) after no option finds heavy tests, too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case "${1:-}" in
  --vllm)
    shift
    bash tests/vllm_tier/setup.sh
    VERL_STEER_VLLM=1 exec "${VERL_STEER_VLLM_VENV:-.venv-vllm}/bin/python" -m pytest tests/vllm_tier -m vllm "$@"
    ;;
  --algorithms)
    shift
    bash tests/setup.sh dev
    python="${VERL_STEER_VENV:-.venv}/bin/python"
    export VERL_STEER_ALGORITHMS=1 VERL_STEER_ALGORITHMS_OUT="${VERL_STEER_ALGORITHMS_OUT:-outputs/algorithms}" OMP_NUM_THREADS=1
    "$python" -m pytest tests/plugin/test_algorithms.py -m algorithms "$@"
    exec "$python" tests/algorithms_page.py "$VERL_STEER_ALGORITHMS_OUT"
    ;;
  --patched)
    shift
    bash tests/setup.sh dev
    python="${VERL_STEER_VENV:-.venv}/bin/python"
    copy="$(mktemp -d)"
    trap 'rm -rf "$copy"' EXIT
    "$python" tests/patched_verl.py "$copy"
    # The copy comes first on the path, here and in every process of Ray's; the installed verl stays as it is.
    PYTHONPATH="$copy${PYTHONPATH:+:$PYTHONPATH}" VERL_STEER_PATCHED_VERL="$copy" "$python" -m pytest "$@"
    exit
    ;;
  --quick)
    shift
    set -- -m "not train and not heavy and not algorithms" "$@"
    ;;
  --heavy)
    shift
    bash tests/setup.sh dev
    exec "${VERL_STEER_VENV:-.venv}/bin/python" -m pytest -m heavy "$@"
    ;;
esac
bash tests/setup.sh dev
python="${VERL_STEER_VENV:-.venv}/bin/python"
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
# The coverage of the core is a promise of the whole suite, not of a selection.
if [ $# -eq 0 ]; then set -- -m "not heavy" --cov --cov-report=term:skip-covered --cov-fail-under=95; fi
exec "$python" -m pytest "$@"
