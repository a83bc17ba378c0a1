# shellcheck shell=bash
# What the scripts need of the machine, and how it is installed on Debian or Ubuntu. Sourced by scripts/*, never run.
# Rust itself (rustup) is expected to be there.

say() { printf '\n== %s\n' "$*"; }
fail() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# need_packages PACKAGE...: installs those that are missing; does not touch apt when nothing is.
need_packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} = 0 ] && return
    say "installing ${missing[*]}"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y update || true
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends "${missing[@]}" \
        || fail "could not install ${missing[*]}: install them and run this again"
}

need_rust() {
    command -v cargo >/dev/null || fail 'cargo is missing: install Rust from https://rustup.rs and run this again'
    cargo fmt --version >/dev/null 2>&1 || rustup component add rustfmt
    cargo clippy --version >/dev/null 2>&1 || rustup component add clippy
}

# need_crate CRATE VERSION BINARY: builds a test tool from crates.io, once, under $TOOLS.
need_crate() {
    [ -x "$TOOLS/bin/$3" ] && return
    say "building $1 $2"
    cargo install --quiet --locked --root "$TOOLS" --version "$2" "$1" \
        || cargo install --quiet --root "$TOOLS" --version "$2" "$1" \
        || fail "could not build $1 $2"
}

# need_python: a virtual environment with an independent gRPC client.
need_python() {
    local venv=$1
    if ! "$venv/bin/python" -c 'import grpc, grpc_reflection, grpc_health' 2>/dev/null; then
        say 'installing the Python gRPC client'
        rm -rf "$venv"
        python3 -m venv "$venv" || fail 'python3 -m venv does not work: install python3-venv'
        "$venv/bin/pip" install --quiet --disable-pip-version-check grpcio grpcio-reflection grpcio-health-checking \
            || fail 'could not install grpcio from PyPI'
    fi
}

need_fuse() {
    [ -e /dev/fuse ] || as_root modprobe fuse 2>/dev/null || true
    [ -e /dev/fuse ] || fail '/dev/fuse is missing: this machine cannot mount FUSE file systems'
}
