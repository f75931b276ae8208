#!/usr/bin/env bash
# Makes .venv beside the sources: Python 3.11 or newer, requirements.txt, this repository in place with what gs:// paths
# need, and jax's build for tpu, cuda12 or cuda13.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly UV=0.13.9
build=${1:-}
case $build in
tpu | cuda12 | cuda13) ;;
*)
  echo "error: '$build' is no build of jax. Give tpu, cuda12 or cuda13." >&2
  exit 2
  ;;
esac

if [[ ! -x .venv/bin/python ]]; then
  found=''
  for python in python3.11 python3.12 python3.13 python3; do
    command -v "$python" >/dev/null || continue
    if [[ $python != python3 ]] || python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
      found=$python
      break
    fi
  done
  if [[ -n $found ]]; then
    "$found" -m venv .venv
  else # the image of a TPU VM may bring an older Python: uv fetches its own
    python3 -m pip install -q --user "uv==$UV"
    python3 -m uv venv -q --python 3.11 --seed .venv
  fi
fi
# The pins of requirements.txt decide the versions.
.venv/bin/python -m pip install -q -r requirements.txt -e '.[gs]' "jax[$build]"
