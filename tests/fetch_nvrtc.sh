#!/usr/bin/env bash
# Gives the tests both NVRTC versions they are run with. To be sourced:
#
#     . tests/fetch_nvrtc.sh
#
# exports ROLLOUT_NVRTC_12 and ROLLOUT_NVRTC_13, the two library files, and ROLLOUT_NVRTC, the one that everything else
# uses (12: what it compiles loads on drivers of both versions). It also exports ROLLOUT_NVRTC_13_0, a library that does
# not find its builtins by itself, as PyTorch for CUDA 13.0 brings it. A variable that is already set is left as it is. What
# is missing is installed by pip into target/, once; after that no network is needed. Returns non-zero, with a
# message, when a version can be neither found nor fetched.

# Links target/nvrtc/$1 to the directory of the library of major version $1 under target/nvrtc/, if there is one.
link_nvrtc() {
    local home=$1 major=$2 library
    library=$(find "$home" -name "libnvrtc.so.$major" -type f 2>/dev/null | head -n 1)
    [ -n "$library" ] && ln -sfn "$(dirname "$library")" "$home/$major"
}

# Installs a package into the folder $1, in a virtual environment or, where Python has none, a folder of its own (two
# packages cannot share one, since both have a folder `nvidia`).
install_nvrtc() {
    local home=$1 package=$2
    if [ -x "$home/venv/bin/pip" ] || python3 -m venv "$home/venv" 2>/dev/null; then
        "$home/venv/bin/pip" install --quiet --disable-pip-version-check "$package"
    else
        rm -rf "$home/venv"
        python3 -m pip install --quiet --disable-pip-version-check --target "$home/${package%%=*}" "$package"
    fi
}

fetch_nvrtc() {
    local root home major package variable
    root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || return 1
    home=${CARGO_TARGET_DIR:-$root/target}/nvrtc
    for major in 12 13; do
        variable=ROLLOUT_NVRTC_$major
        [ -n "${!variable:-}" ] && continue
        case $major in
            12) package=nvidia-cuda-nvrtc-cu12==12.9.86 ;;
            13) package=nvidia-cuda-nvrtc==13.5.37 ;;
        esac
        if ! [ -e "$home/$major/libnvrtc.so.$major" ] && ! link_nvrtc "$home" "$major"; then
            echo "Fetching $package into $home" >&2
            mkdir -p "$home"
            if ! install_nvrtc "$home" "$package" || ! link_nvrtc "$home" "$major"; then
                echo "No NVRTC $major: install it, or set $variable to libnvrtc.so.$major" >&2
                return 1
            fi
        fi
        export "$variable=$home/$major/libnvrtc.so.$major"
    done
    export ROLLOUT_NVRTC=${ROLLOUT_NVRTC:-$ROLLOUT_NVRTC_12}
    if [ -z "${ROLLOUT_NVRTC_13_0:-}" ]; then
        # Apart, where no search for another version finds it.
        home=$home-13.0 package=nvidia-cuda-nvrtc==13.0.88
        if ! find "$home" -name libnvrtc.so.13 2>/dev/null | grep -q .; then
            echo "Fetching $package into $home" >&2
            mkdir -p "$home"
            if ! install_nvrtc "$home" "$package"; then
                echo "No NVRTC 13.0: set ROLLOUT_NVRTC_13_0 to its libnvrtc.so.13" >&2
                return 1
            fi
        fi
        ROLLOUT_NVRTC_13_0=$(find "$home" -name libnvrtc.so.13 | head -n 1)
        export ROLLOUT_NVRTC_13_0
    fi
}

fetch_nvrtc
