#!/usr/bin/env bash
# Everything that only a GPU can tell, in two calls that end by themselves within 290 seconds each.
#
#   bench/gpu.sh [OUT_DIR] --first      versions, smoke, barrier, lstm, graphs, tests
#   bench/gpu.sh [OUT_DIR] --second     constants, gru, lstm-special, lstm-tf32, lean, cluster, again, memcheck
#   bench/gpu.sh [OUT_DIR] --part GROUP ... [--seconds N] [--arguments ARGUMENTS OF python -m bench gpu]
#
# A GROUP is one of these, or build (the C++ engine), tune (what kernels/gpus/ may have of a GPU) or measure (python -m
# bench gpu with the ARGUMENTS). Groups run one after the other, in order of importance, each in processes of its own
# with a limit: a fault or a hang costs that group alone. Lines are printed as they come. A strategy of the kernels that
# fails its smoke test is left out of all that follows, and named; tests that fail are run again by the second call.
#
# OUT_DIR (default: $OUT, else bench/results/gpu) has eight files after both calls: for each the rows of measurements
# (first.jsonl), what was printed (first.txt) and all logs (first-logs.tar.gz), kept up to date as groups end; and what
# a later call goes by, left-out.json and failed-tests.txt, which also lie in out/gpu for a call with another OUT_DIR.
# `python -m bench gpu-decide first.jsonl second.jsonl` writes what follows from the rows, anywhere; `report` and `plot`
# show them. What tune measures, tuned.jsonl, is of the kind that kernels/gpus/NAME.jsonl has for a GPU.
#
# The machine needs torch, triton, pytest and a CUDA device, and no network: nothing is installed. The C++ engine is
# built before (`make`), or there by --part build. The kernels for all of this can be compiled before, without a GPU, by
# `python -m bench precompile`; with its archive in place, the first group fills Triton's cache and says whether it hits.
#
# In the environment: PYTHON (default: python3), OUT, TRITON_CACHE_DIR (default: build/triton).

set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
if [[ $# -eq 0 || $1 == -h || $1 == --help ]]; then
  sed -n '2,/^$/s/^# \{0,1\}//p' bench/gpu.sh
  exit $(($# == 0 ? 2 : 0))
fi
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} exec "${PYTHON:-python3}" -m bench.gpu.running "$@"
