#!/usr/bin/env bash
# Sets up this machine for its NVIDIA GPUs: .venv with jax's CUDA build, and a check that jax sees them.
#
#   gpu_setup.sh [cuda12|cuda13]     without: cuda13 from driver 580 on, cuda12 from 525 on
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  printf 'error: %s. %s.\n' "$1" "$2" >&2
  exit 2
}

command -v nvidia-smi >/dev/null || fail "nvidia-smi is not here" "Install the NVIDIA driver"
driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader) || fail "nvidia-smi: $driver" "Repair the driver"
driver=${driver%%$'\n'*}
major=${driver%%.*}
[[ $major =~ ^[0-9]+$ ]] || fail "nvidia-smi names no driver version ('$driver')" "Repair the driver"

build=${1:-}
if [[ -z $build ]]; then
  ((major >= 580)) && build=cuda13 || build=cuda12
fi
case $build in
cuda13) least=580 ;;
cuda12) least=525 ;;
*) fail "'$build' is no CUDA build" "Give cuda12 or cuda13" ;;
esac
((major >= least)) || fail "driver $driver is too old for $build" "Install driver $least or newer"

bash tpu_scripts/venv.sh "$build"
.venv/bin/python -c 'import jax; print(*jax.devices("gpu"), sep="\n")' ||
  fail "jax does not see the GPU (driver $driver, $build)" "Read the message above; try the other build"
