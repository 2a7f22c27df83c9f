#!/usr/bin/env bash
# An expert for each type of open-ended questions, one after the other; experts and anchors as files in the run folder, logs in logs/.
set -euo pipefail
mkdir -p logs
uv run --project "$(dirname -- "${BASH_SOURCE[0]}")" --package avcl-avqa avqa train-all "$@" \
  > >(tee logs/train_all_tasks.log) 2> >(tee logs/train_all_tasks.err >&2)
