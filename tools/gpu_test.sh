#!/usr/bin/env bash
# On a GPU machine: builds core, CUDA backend and extension module from .gpu_pack with the machine's own Python and
# torch, runs the C++ and Python GPU tests and leaves logs and JUnit files in OUT. Ends with 1 if anything failed, but
# runs everything that can run first.
#   PYTHON=python3 JOBS=16 gpu_test.sh OUT
set -euo pipefail

out=$(mkdir -p "$1" && cd "$1" && pwd)
python=$(command -v "${PYTHON:-python3}")
jobs=${JOBS:-$(nproc)}
failed=0

[ -d .gpu_pack ] || { echo "gpu-test: no .gpu_pack here; run 'make gpu-pack' where the packages are" >&2; exit 1; }

record_machine() {
  "$python" -c 'import platform, sys, torch; print(platform.platform()); print("python", sys.version.split()[0]);
print("torch", torch.__version__); print("device", torch.cuda.get_device_name(0))'
  nvcc --version | tail -n 2
  cmake --version | head -n 1
}

build() {
  cmake --preset gpu -DPython3_EXECUTABLE="$python"
  cmake --build build/gpu -j "$jobs"
}

record_machine 2>&1 | tee "$out/machine.txt"
build 2>&1 | tee "$out/build.log"
ctest --preset gpu --no-tests=ignore --output-junit "$out/ctest.xml" 2>&1 | tee "$out/ctest.log" || failed=1
PYTHONPATH=$PWD/python${PYTHONPATH:+:$PYTHONPATH} "$python" -m pytest tests/gpu -m "" -p no:cacheprovider \
  --junitxml="$out/pytest.xml" 2>&1 | tee "$out/pytest.log" || failed=1
exit "$failed"
