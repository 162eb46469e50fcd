#!/usr/bin/env bash
# Installs what the tests of this folder need and the system lacks (Debian, root): a SLURM, and `ip`.
# Fails with one line where that cannot be done.
set -euo pipefail
export PATH=$PATH:/usr/sbin:/sbin

complete() {
    for program in slurmctld slurmd munged ip; do command -v "$program" || return; done
} >/dev/null

# A mirror that is away must not hold anybody up.
get() { DEBIAN_FRONTEND=noninteractive timeout -k 60 600 apt-get -qq -o Acquire::Retries=2 -o Acquire::http::Timeout=30 "$@"; }

complete && exit
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "error: slurm-wlm, munge or iproute2 is not installed; root can install them on Debian" >&2
    exit 1
fi
if ! { get update && get install -y --no-install-recommends slurm-wlm munge iproute2 && complete; } >&2; then
    echo "error: slurm-wlm, munge and iproute2 could not be installed" >&2
    exit 1
fi
