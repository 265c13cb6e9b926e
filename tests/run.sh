#!/usr/bin/env bash
# Runs every test this machine can run, tier by tier (tests/README.md), and ends with a line per tier.
#
# Needs Rust, a C linker, and Python 3 with pip (only to fetch NVRTC into target/, where it is not given).
#
#   ROLLOUT_REQUIRE_NVRTC=0   skip what needs NVRTC instead of failing without it
#   ROLLOUT_REQUIRE_GPU=1     fail instead of skipping what needs a GPU
#
# Arguments go to each `cargo test`: flags and names of tests, not of targets.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export ROLLOUT_REQUIRE_NVRTC=${ROLLOUT_REQUIRE_NVRTC:-1}
if [ "$ROLLOUT_REQUIRE_NVRTC" = 1 ] && [ -e tests/fetch_nvrtc.sh ]; then
    # shellcheck source=tests/fetch_nvrtc.sh
    . tests/fetch_nvrtc.sh
fi

# Whether the tests of the backend meet a real driver, as tests/cuda/machine.rs asks it.
gpu=0
if [ "${ROLLOUT_REQUIRE_GPU:-0}" = 1 ] || [ -e /dev/nvidiactl ]; then gpu=1; fi

# Counts, per tier, what `cargo test` says it ran, and what its tests say they skipped.
tiers='
BEGIN {
    split("attention_rollout attention_rollout_c library cpu allocations cli fuzz, nvrtc, kernels ptxemu api behaviour instructions vocabulary " \
        "trace vcuda driver ptxtime agreement budgets streams c_interface, golden", targets, ",")
    for (i = 1; i <= 4; i++) {
        count = split(targets[i], of_tier, " ")
        for (j = 1; j <= count; j++) tiers[of_tier[j]] = i - 1
    }
    tiers["cuda"] = gpu ? 3 : 2
    name[0] = "planning, validation, CPU, command line"
    name[1] = "NVRTC, every kernel compiled"
    name[2] = "every kernel interpreted, times predicted" (gpu ? "" : ", backend on the stand-in driver")
    name[3] = gpu ? "backend on the GPU, instructions as a GPU recorded them" : "instructions as a GPU recorded them"
}
# What a target says last is of all its tests; what came before, of tests run again in processes of their own.
function finish() {
    ran[tier] += passed
    failed[tier] += failures
    passed = failures = 0
}
{ print; fflush() }
/^ +(Running|Doc-tests) / {
    finish()
    target = $NF
    gsub(/.*\/|-[0-9a-f]+\)$/, "", target)
    if (!(target in tiers)) print "tests/run.sh: of what tier is " target "?"
    tier = tiers[target]
}
/^test +(\[.*\] +)?compile::/ && target == "kernels" { compiled++ }
/^test result:/ { passed = $4; failures = $6 }
match($0, /SKIPPED: /) {
    split(substr($0, RSTART + RLENGTH), said, ": ")
    test = said[1]
    if (test != "main" && !((target, test) in seen)) { skipped[tier]++; ran[tier]-- }
    seen[target, test] = 1
    why[tier] = substr($0, RSTART + RLENGTH + length(test) + 2)
}
END {
    finish()
    ran[1] += compiled
    ran[2] -= compiled
    print ""
    for (tier = 0; tier < 4; tier++) {
        line = "tier " tier ": " ran[tier] + 0 " tests ran (" name[tier] ")"
        if (failed[tier]) line = line "; " failed[tier] " FAILED"
        if (tier in why) line = line "; " skipped[tier] + 0 " skipped, such as: " why[tier]
        if (tier == 3 && !gpu) line = line "; the backend on a GPU skipped: there is none"
        print line
    }
}'

all() { cargo test --locked --workspace --features cli "$@" 2>&1; }

# Tests of the backend take the stand-in driver in turns, and budgets are one test: they keep one core busy, so others run
# beside them.
run() {
    local on_one_core status=0
    all --no-run || return
    all --test cuda --test budgets "$@" >"$output" & on_one_core=$!
    all --lib --bins --test '[!bc]*' --test 'b[!u]*' --test 'c[!u]*' "$@" || status=$?
    wait "$on_one_core" || status=$?
    cat "$output"
    all --doc "$@" || status=$?
    return "$status"
}
output=$(mktemp)
trap 'rm -f "$output"' EXIT
run "$@" | awk -v gpu="$gpu" "$tiers"
