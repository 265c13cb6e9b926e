#!/usr/bin/env bash
# Seeds faults into what the last commit changed of the host's code (.cargo/mutants.toml), one by one, for at most so many
# seconds (90 unless given), and fails where the tests of the library and the CPU notice one not. Each fault takes a build.
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
if [ -z "$(cargo mutants --list --in-diff "$work/diff")" ]; then
    echo "host mutants: 0 judged: the last commit changed nothing that is judged"
    exit 0
fi

# Without the command line, which would be built for every fault.
tests=(--locked --lib --test library --test cpu)
cargo test --quiet --no-run "${tests[@]}"
# In place, with what has been built; SIGINT has the sources put back. The tests have passed without faults.
status=0
timeout --signal=INT --kill-after=30 "$seconds" \
    cargo mutants --in-diff "$work/diff" --in-place --baseline=skip --timeout=60 --output "$work" \
    -- "${tests[@]}" || status=$?

count() {
    if [ -e "$work/mutants.out/$1.txt" ]; then wc -l <"$work/mutants.out/$1.txt"; else echo 0; fi
}
missed=$(count missed)
echo "host mutants: $(($(count caught) + missed + $(count timeout) + $(count unviable))) judged:" \
    "$(count caught) noticed, $(count timeout) ended by the clock, $(count unviable) not Rust, $missed missed"
case $status in
# Done, some ended by the clock, or the seconds are over; else the tool itself failed.
0 | 2 | 3 | 124) [ "$missed" = 0 ] ;;
*) exit "$status" ;;
esac
