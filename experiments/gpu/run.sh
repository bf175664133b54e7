#!/usr/bin/env bash
# Measures training and runs the arms of two sensors on one GPU in under eight minutes; README.md says how.
#
#   bash experiments/gpu/run.sh [--deadline SECONDS] [--out DIR] [--device cuda|cpu] [--smoke]
#
# Uses PYTHON, else .venv, else a python3 that has what it takes, else installs with uv; the clock runs
# from the first line. DEADLINE_S and OUT stand for --deadline and --out.
set -euo pipefail
export STARTED="${STARTED:-$(date +%s)}"
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}"
# Processes are many, each on a core or two.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" OPENBLAS_NUM_THREADS="${OPENBLAS_NUM_THREADS:-1}"

needs='from importlib.util import find_spec
need = "torch timm lightning einops scipy pandas sklearn safetensors threadpoolctl".split()
raise SystemExit(not all(map(find_spec, need)))'
if [ -z "${PYTHON:-}" ]; then
  for candidate in .venv/bin/python python3; do
    if command -v "$candidate" >/dev/null && "$candidate" -c "$needs" 2>/dev/null; then
      PYTHON="$candidate"
      break
    fi
  done
fi
if [ -z "${PYTHON:-}" ]; then
  command -v uv >/dev/null || python3 -m pip install --quiet uv
  uv sync --quiet --no-dev
  PYTHON=.venv/bin/python
fi
exec "$PYTHON" experiments/gpu/run.py "$@"
