#!/usr/bin/env bash
set -euo pipefail
exec uv run --project "$(dirname -- "${BASH_SOURCE[0]}")" --package avcl-avvp avvp test "$@" split=val
