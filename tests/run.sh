#!/usr/bin/env bash
# Runs every test this machine can run: the library, the command line and its documentation, the kernels compiled by
# NVRTC and interpreted on the CPU, and, where a GPU is there, the kernels on it.
#
# Needs Rust, a C linker, and Python 3 with pip (only to fetch NVRTC into target/, where it is not given).
#
#   ROLLOUT_REQUIRE_NVRTC=0   skip what needs NVRTC instead of failing without it
#   ROLLOUT_REQUIRE_GPU=1     fail instead of skipping what needs a GPU
#
# Arguments go to `cargo test`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export ROLLOUT_REQUIRE_NVRTC=${ROLLOUT_REQUIRE_NVRTC:-1}
if [ "$ROLLOUT_REQUIRE_NVRTC" = 1 ] && [ -e tests/fetch_nvrtc.sh ]; then
    # shellcheck source=tests/fetch_nvrtc.sh
    . tests/fetch_nvrtc.sh
fi

cargo test --locked --workspace --features cli "$@"
