#!/usr/bin/env bash
# Everything that only a GPU can tell, by one command: build, test, watch by compute-sanitizer, measure.
#
#   bench/gpu.sh [OUT_DIR] [--part PART ...] [-- ARGUMENTS OF python -m bench gpu]
#
# PART: build, tests-gpu, tests, tests-interpreted, sanitizer, tune, or a part of `python -m bench gpu`, which it measures
# in this order: latency, barrier, targets, lean, applications, stacks, reset, packed, recorded, forward, training;
# default: all of them. Each of the first six, and all that is measured together, ends within ten minutes, finished or
# not. Everything is written under OUT_DIR (default: $OUT, else bench/results/gpu); rows of single parts go to a file of
# their own, gpu-PART-PART.jsonl. The machine needs torch, triton, a C++ compiler and a CUDA device, and no network:
# nothing is installed. A stage that fails or takes too long does not keep the next ones from running; the exit status
# says whether all passed.
#
# In three calls of ten minutes, what is to be known first: the constants of the cost model and the tape's memory; which
# targets are met; whether the tests for GPUs pass. `python -m bench gpu-constants` and `report` read the rows anywhere.
# What `tune` measures, OUT_DIR/tuned.jsonl, is what kernels/gpus/NAME.jsonl ships for a GPU, once it is complete.
#
#   MINUTES=5 bench/gpu.sh OUT_DIR --part build latency barrier lean
#   MINUTES=7 bench/gpu.sh OUT_DIR --part build targets
#   bench/gpu.sh OUT_DIR --part build tests-gpu
#
# In the environment: PYTHON (default: python3), MINUTES of measuring (default: 8).

set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
root=$PWD
python=${PYTHON:-python3}
minutes=${MINUTES:-8}
out=${OUT:-bench/results/gpu}
stages=() measured=() passed=() failed=()

usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "bench/gpu.sh"; }

if [[ $# -gt 0 && $1 != -* ]]; then
  out=$1
  shift
fi
while [[ $# -gt 0 ]]; do
  case $1 in
    --part)
      shift
      while [[ $# -gt 0 && $1 != -* ]]; do
        case $1 in
          build | tests-gpu | tests | tests-interpreted | sanitizer | tune) stages+=("$1") ;;
          latency | barrier | targets | lean | applications | stacks) measured+=("$1") ;;
          reset | packed | recorded | forward | training) measured+=("$1") ;;
          *)
            echo "bench/gpu.sh: there is no part $1" >&2
            exit 2
            ;;
        esac
        shift
      done
      ;;
    --)
      shift
      break
      ;;
    -h | --help)
      usage
      exit 0
      ;;
    *)
      echo "bench/gpu.sh: what is $1?" >&2
      usage >&2
      exit 2
      ;;
  esac
done
everything=$((${#stages[@]} + ${#measured[@]} == 0))

asked() { ((everything)) || [[ " ${stages[*]-} " == *" $1 "* ]]; }

# stage NAME SECONDS COMMAND ...: its output goes to OUT_DIR/NAME.log, the end of it here if it fails.
stage() {
  local name=$1 limit=$2 status begin=$SECONDS
  shift 2
  echo "== $name (at most $limit s)"
  timeout --kill-after=30 "$limit" "$@" > "$out/$name.log" 2>&1
  status=$?
  if ((status == 0)); then
    passed+=("$name ($((SECONDS - begin)) s)")
    return
  fi
  tail -n 25 "$out/$name.log"
  if ((status == 124 || status == 137)); then
    failed+=("$name: stopped after $limit s")
  else
    failed+=("$name: exit status $status")
  fi
}

if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "bench/gpu.sh: there is no CUDA device that torch ($python) can use; nothing was run" >&2
  exit 1
fi
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1

has() { "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)"; }

environment() {
  date --utc +%FT%TZ
  git describe --always --exclude='*' --dirty=+ 2> /dev/null
  nvidia-smi && nvidia-smi -q -d CLOCK,POWER
  "$python" --version
  "$python" -c 'import torch; print(torch.__config__.show()); print("cuDNN", torch.backends.cudnn.version())'
  local package
  for package in torch triton numpy pytest hypothesis rich matplotlib ninja setuptools onnxruntime; do
    "$python" -c "from importlib.metadata import version as v; print('$package', v('$package'))" 2> /dev/null ||
      echo "$package: not installed"
  done
  nvcc --version 2> /dev/null || echo 'nvcc: not found'
  "${CXX:-c++}" --version | head -n 1
  echo "compute-sanitizer: ${sanitizer:-not found}"
}

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2> /dev/null)
environment > "$out/environment.txt" 2>&1

if asked build; then
  # As an installation in place would leave it, without one: a checkout has no fastrnn/kernels of its own.
  has fastrnn.kernels 2> /dev/null || ln -sfn ../kernels fastrnn/kernels
  stage build 560 "$python" setup.py -q build_ext --inplace
fi

options=(-q -ra -p no:benchmark) # a plugin that warns where it finds pytest-xdist, and warnings are errors
has xdist && options+=(-n 8)     # most of the time goes to compilers

if asked tests-gpu; then
  stage tests-gpu 560 "$python" -m pytest "${options[@]}" -m gpu --junit-xml="$out/tests-gpu.xml"
fi

if asked tests; then
  stage tests 560 "$python" -m pytest "${options[@]}" -m 'not gpu' --junit-xml="$out/tests.xml"
fi

if asked tests-interpreted; then # Triton interprets in a process of its own; 5: there were no tests to run
  TRITON_INTERPRET=1 stage tests-interpreted 560 \
    bash -c '"$@" || (($? == 5))' - "$python" -m pytest "${options[@]}" tests/interpreted
fi

if asked sanitizer; then
  stage sanitize 220 "$python" -m bench.sanitize # by itself first: it compiles what the others find compiled
  for tool in memcheck racecheck; do
    if [[ -z $sanitizer ]]; then
      failed+=("$tool: there is no compute-sanitizer")
      continue
    fi
    # Without torch's cache of memory, what is read past a tensor is read past an allocation.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 stage "$tool" 160 \
      "$sanitizer" --tool "$tool" --error-exitcode 9 "$python" -m bench.sanitize
  done
fi

if asked tune; then # the sizes that torch's layers are weakest at, the most usual first: it is stopped when time is up
  shapes=()
  for batch in 16 64 1; do
    for hidden in 512 256 1024 768; do shapes+=("$batch,128,$hidden,$hidden"); done
  done
  FASTRNN_CACHE=$out stage tune 560 "$python" -m fastrnn tune --cell lstm gru --dtype bfloat16 --shape "${shapes[@]}"
fi

if ((everything || ${#measured[@]} > 0)); then
  parts=() suffix=
  if ((${#measured[@]} > 0)); then
    parts=(--part "${measured[@]}")
    suffix=$(printf -- '-%s' "${measured[@]}")
  fi
  stage "bench$suffix" $((${minutes%.*} * 60 + 90)) "$python" -m bench gpu --minutes "$minutes" \
    --out "$out/gpu$suffix.jsonl" "${parts[@]}" "$@"
fi

{
  echo "== summary: ${#passed[@]} passed, ${#failed[@]} failed; $out"
  ((${#passed[@]} == 0)) || printf 'passed: %s\n' "${passed[@]}"
  ((${#failed[@]} == 0)) || printf 'FAILED: %s\n' "${failed[@]}"
} | tee "$out/summary.txt"
((${#failed[@]} == 0))
