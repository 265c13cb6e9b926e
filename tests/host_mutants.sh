#!/usr/bin/env bash
# Seeds faults into what the last commit changed of the host's code (.cargo/mutants.toml), one by one, for at most so many
# seconds (90 unless given), and fails where the tests on the CPU notice one not. Each fault takes a build.
#
# Needs `cargo install cargo-mutants` and the commit before; says so and does nothing where one is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seconds=${1:-90}

if ! cargo mutants --version >/dev/null 2>&1; then
    echo "host mutants: SKIPPED: cargo-mutants is not installed"
    exit 0
fi
if ! git rev-parse --quiet --verify HEAD~1 >/dev/null 2>&1; then
    echo "host mutants: SKIPPED: a clone without the commit before"
    exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git diff HEAD~1 -- src >"$work/diff"
# In place, with what has been built; SIGINT has the sources put back. The tests have passed without faults.
status=0
timeout --signal=INT --kill-after=30 "$seconds" \
    cargo mutants --in-diff "$work/diff" --in-place --baseline=skip --timeout=120 --output "$work" --no-shuffle \
    --features cli -- --locked --lib --test library --test cpu || status=$?

outcomes=$work/mutants.out
count() {
    if [ -e "$outcomes/$1.txt" ]; then wc -l <"$outcomes/$1.txt"; else echo 0; fi
}
echo "host mutants: $(($(count caught) + $(count missed) + $(count timeout) + $(count unviable))) judged in $SECONDS s:" \
    "$(count caught) noticed, $(count timeout) ended by the clock, $(count unviable) not Rust, $(count missed) missed"
# 124: the seconds are over, which is no fault of the change.
[ "$(count missed)" = 0 ] && { [ "$status" = 0 ] || [ "$status" = 124 ] || [ "$status" = 3 ]; }
