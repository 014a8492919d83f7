#!/usr/bin/env bash
# Build, test, check and benchmark on a machine with a CUDA GPU, in under 8 minutes:
#
#     bash benchmarks/gpu.sh OUT
#
# Needs Python >= 3.10 with torch (CUDA build), triton, pytest, pybind11 and ninja, and nvcc; no network. PYTHON chooses the
# interpreter. Everything is written to OUT: a log a stage, summary.txt, gpu-<device>.json (copy that one to benchmarks/results/).
# Ends with 1 if any stage failed; later stages run all the same.
#
# State: not yet run on a GPU. It was written where there is none; its Python parts are checked for syntax and types there.
set -uo pipefail

out=${1:?usage: bash benchmarks/gpu.sh OUT}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
failed=0
: > "$out/summary.txt"

# stage NAME SECONDS COMMAND...: its output goes to OUT/NAME.log, its outcome to the summary
stage() {
  local name=$1 limit=$2 status=0 began=$SECONDS
  shift 2
  timeout --signal=INT --kill-after=10 "$limit" "$@" > "$out/$name.log" 2>&1 || status=$?
  tail -n 25 "$out/$name.log"
  echo "$name: exit $status after $((SECONDS - began)) s" | tee -a "$out/summary.txt"
  [ "$status" -eq 0 ] || failed=1
  return "$status"
}

nvidia-smi | tee "$out/nvidia-smi.txt"
# only this device's code: nvcc is most of the time
if [ -z "${TORCH_CUDA_ARCH_LIST:-}" ]; then
  arch=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') && export TORCH_CUDA_ARCH_LIST=$arch
fi
FASTFORGET_REQUIRE_NATIVE=1 stage build 120 "$python" setup.py build_native

stage tests 120 "$python" -m pytest -q -m gpu -rs --durations=5 tests

if command -v compute-sanitizer > /dev/null; then
  for tool in memcheck racecheck; do
    stage "$tool" 45 compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" -m fastforget._bench.gpu "$out/small" --small
  done
else
  echo "sanitizer: compute-sanitizer is not installed, left out" | tee -a "$out/summary.txt"
fi

stage bench 150 "$python" -m fastforget._bench.gpu "$out" --seconds 100

cat "$out/summary.txt"
exit "$failed"
