#!/usr/bin/env bash
# Stands in for nvcc where `cargo check` is all that is wanted of candle's CUDA kernels: writes what is asked for, empty.
#
#     NVCC=$PWD/src/candle/nvcc.sh CUDA_COMPUTE_CAP=80 CUDARC_CUDA_VERSION=12080 \
#         cargo check --manifest-path src/candle/Cargo.toml --features cuda
set -euo pipefail
output='' folder=. sources=()
while [ $# -gt 0 ]; do
    case $1 in
        -o) output=$2 && shift ;;
        --output-directory) folder=$2 && shift ;;
        --version) echo 'Cuda compilation tools, release 12.8, V12.8.93' && exit ;;
        --list-gpu-code) printf 'sm_80\nsm_90\n' && exit ;;
        *.cu) sources+=("$1") ;;
    esac
    shift
done
if [ -n "$output" ]; then
    : >"$output"
else
    for source in "${sources[@]}"; do
        : >"$folder/$(basename "${source%.cu}").ptx"
    done
fi
