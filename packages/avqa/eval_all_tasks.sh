#!/usr/bin/env bash
# Answers every test set of a run (by default the newest): one task<k>_<type>_results.json each; stages=true also those of earlier stages.
set -euo pipefail
mkdir -p logs
uv run --project "$(dirname -- "${BASH_SOURCE[0]}")" --package avcl-avqa avqa test-all answers=true "$@" \
  > >(tee logs/eval_all_tasks.log) 2> >(tee logs/eval_all_tasks.err >&2)
