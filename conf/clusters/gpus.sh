#!/bin/sh
# The GPUs of this host in the form that Spark asks for: {"name": "gpu", "addresses": ["0", "1"]}
set -eu
fail() { echo "gpus.sh on $(hostname): $*" >&2; exit 1; }

command -v nvidia-smi >/dev/null ||
  fail "there is no nvidia-smi on PATH ($PATH): install NVIDIA's driver, or start Spark here without GPUs"
found=$(nvidia-smi --query-gpu=index --format=csv,noheader 2>&1) || fail "nvidia-smi failed: $found"
case $found in
  *[!0-9[:space:]]*) fail "nvidia-smi names no GPUs, but says: $found" ;;
  *[0-9]*) ;;
  *) fail "nvidia-smi finds no GPU" ;;
esac
echo "$found" | awk 'NF { list = list (list ? ", " : "") "\"" $1 "\"" }
  END { print "{\"name\": \"gpu\", \"addresses\": [" list "]}" }'
