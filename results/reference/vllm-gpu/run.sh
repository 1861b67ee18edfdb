#!/usr/bin/env bash
# The experiment vllm-gpu on a machine with a GPU and without a package index; README.md says how it is used.
#   run.sh unpack PART...     put the packages of these parts in place
#   run.sh check              make the environment, import all, make it known to the suite
#   run.sh smoke              a few requests under two schedulers with a small model
#   run.sh experiment MODEL   the cells of one model, and an archive of them; repeated, it goes on where it stopped
# Variables: ROOT, where everything is put; OUT, where the archive goes; LIMIT, the seconds of a stage;
# DEVICE and VERSION of vLLM.
set -euo pipefail
cd "$(dirname "$0")/../../.."

ROOT=${ROOT:-build/gpu/root}
OUT=${OUT:-build/gpu/out}
LIMIT=${LIMIT:-540}
DEVICE=${DEVICE:-cuda}
VERSION=${VERSION:-0.25.0}

mkdir -p "$ROOT" "$OUT"
ROOT=$(realpath "$ROOT")
OUT=$(realpath "$OUT")
HERE=results/reference/vllm-gpu
VENV=$ROOT/venv
SUITE=("$VENV/bin/python" -c 'from suite.cli import main; main()')

export SUITE_ENGINES=$ROOT/engines
export VLLM_USE_FLASHINFER_SAMPLER=0 # by default vLLM takes for granted that FlashInfer is installed
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1

say() { echo "== $*"; }

fail() {
    echo "error: $*" >&2
    exit 2
}

unpack() {
    (($#)) || fail "unpack: name the folders of the parts"
    local part archive
    mkdir -p "$ROOT/site"
    for part in "$@"; do
        [[ -d $part ]] || fail "$part: no such part; pack.py makes them"
        for archive in "$part"/*.tar.xz; do
            python3 -m tarfile --filter data -e "$archive" "$ROOT/site" >/dev/null
        done
        say "unpacked $part: $(du -sm "$ROOT/site" | cut -f1) MB of packages"
    done
}

# A virtual environment that sees the packages unpacked here, then this repository, then those of the machine's
# own python3. Not --system-site-packages: that would be its base Python's, if it is a virtual environment itself.
environment() {
    [[ -x $VENV/bin/python ]] || python3 -m venv --without-pip "$VENV"
    local places
    places=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    python3 -c 'import site, sys; print(*sys.argv[1:], *site.getsitepackages(), sep="\n")' \
        "$ROOT/site" "$PWD" >"$places/packages.pth"
}

check() {
    environment
    [[ $DEVICE = cpu ]] || nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
    "$VENV/bin/python" -c 'import sys, torch; print("python", sys.version.split()[0], "torch", torch.__version__)'
    "$VENV/bin/python" "$HERE/check.py" || fail "pack what is missing (there.txt), or mend it; then check again"
    "${SUITE[@]}" engines adopt "$VENV" --engine vllm --device "$DEVICE"
}

# The suite with the experiment and more arguments, stopped after LIMIT seconds.
suite() {
    [[ -e $SUITE_ENGINES ]] || fail "no engine is known yet; run: $0 check"
    local arguments=("$@")
    [[ $DEVICE = cuda ]] || arguments+=(--set "backend.device=$DEVICE" --set "backend.version=$VERSION")
    timeout --kill-after=30 "$LIMIT" "${SUITE[@]}" run vllm-gpu "${arguments[@]}"
}

smoke() {
    suite -s fcfs -s dlpm --seed 0 --set backend.model=mid --set workload.rate=4 -o "$ROOT/runs/smoke" --fresh
    say "smoke: well"
}

experiment() {
    (($# == 1)) || fail "experiment: name one model"
    local status=0
    suite --set "backend.model=$1" -o "$ROOT/runs/$1" || status=$?
    pack "$1"
    ((status != 124)) || say "stopped after $LIMIT s; the same command goes on where it stopped"
    return "$status"
}

# What is measured, and the servers' logs as long as they are short. The policies' logs are large and stay.
pack() {
    local archive=$OUT/vllm-gpu-$1.tar.gz
    (
        cd "$ROOT/runs/$1"
        find . -type f ! -name '*.jsonl' ! -path './figures/*' ! -name report.html -size -2048k -print0 |
            tar -czf "$archive" --null -T -
    )
    say "$archive: $(du -k "$archive" | cut -f1) kB"
}

(($#)) || fail "$(sed -n '2,8s/^# //p' "$0")"
stage=$1
shift
case $stage in
    unpack | check | smoke | experiment) "$stage" "$@" ;;
    *) fail "no stage '$stage'; there are unpack, check, smoke, experiment" ;;
esac
