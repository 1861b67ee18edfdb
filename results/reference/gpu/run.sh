#!/usr/bin/env bash
# The experiments ENGINE-gpu and ENGINE-replicas-gpu on a machine with a GPU and without a package index; README.md
# says how it is used.
#   run.sh ENGINE unpack PART...     put the packages of these parts in place
#   run.sh ENGINE check              make the environment, import all, make it known to the suite
#   run.sh ENGINE smoke              a few requests under two schedulers with a small model
#   run.sh ENGINE experiment MODEL   the cells of one model, and an archive of them; repeated, it goes on where it
#                                    stopped
#   run.sh ENGINE replicas NUMBER    the same of so many replicas behind routers
# The last three pass further arguments to `suite run`.
# ENGINE is vllm or sglang. Variables: ROOT, where everything is put; OUT, where the archive goes; LIMIT, the seconds
# of a stage; DEVICE and VERSION of the engine.
set -euo pipefail
cd "$(dirname "$0")/../../.."

fail() {
    echo "error: $*" >&2
    exit 2
}

(($#)) || fail "$(sed -n '2,12s/^# //p' "$0")"
ENGINE=$1
shift
DEVICE=${DEVICE:-cuda}
case $ENGINE in
    vllm) VERSION=${VERSION:-0.25.0} ;;
    sglang) VERSION=${VERSION:-0.5.15} ;;
    *) fail "no engine '$ENGINE'; there are vllm, sglang" ;;
esac

ROOT=${ROOT:-build/gpu/$ENGINE/root}
OUT=${OUT:-build/gpu/$ENGINE/out}
LIMIT=${LIMIT:-540}

mkdir -p "$ROOT" "$OUT"
ROOT=$(realpath "$ROOT")
OUT=$(realpath "$OUT")
HERE=results/reference/gpu
VENV=$ROOT/venv
ROUTER=$ROOT/router
SUITE=("$VENV/bin/python" -c 'from suite.cli import main; main()')

export SUITE_ENGINES=$ROOT/engines
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
export VLLM_USE_FLASHINFER_SAMPLER=0 # by default vLLM takes for granted that FlashInfer is installed

say() { echo "== $*"; }

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

# A virtual environment, at $1, that sees the packages unpacked here, then this repository, then those of the machine's
# own python3. Not --system-site-packages: that would be its base Python's, if it is a virtual environment itself.
environment() {
    [[ -x $1/bin/python ]] || python3 -m venv --without-pip "$1"
    local places
    places=$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    {
        printf '%s\n' "$ROOT/site" "$PWD"
        python3 -c 'import site; [print(f"import site; site.addsitedir({p!r})") for p in site.getsitepackages()]'
    } >"$places/packages.pth"
}

# SGLang compiles some of its kernels when they are first run: say where the compiler is and what it needs.
compiler() {
    [[ $ENGINE = sglang && $DEVICE = cuda ]] || return 0
    local found
    found=$("$VENV/bin/python" "$HERE/compiler.py" "$ROOT/lib") || fail "SGLang needs the CUDA compiler"
    eval "$found"
}

check() {
    environment "$VENV"
    environment "$ROUTER"
    compiler
    [[ $DEVICE = cpu ]] || nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
    "$VENV/bin/python" -c 'import sys, torch; print("python", sys.version.split()[0], "torch", torch.__version__)'
    "$VENV/bin/python" "$HERE/check.py" "$ENGINE" ||
        fail "pack what is missing (there.txt), or mend it; then check again"
    "${SUITE[@]}" engines adopt "$VENV" --engine "$ENGINE" --device "$DEVICE"
    "${SUITE[@]}" engines adopt "$ROUTER" --engine sglang-router --device cpu
}

# The suite with an experiment and more arguments, stopped after LIMIT seconds.
suite() {
    [[ -e $SUITE_ENGINES ]] || fail "no engine is known yet; run: $0 $ENGINE check"
    compiler
    local arguments=("$@")
    if [[ $DEVICE = cpu ]]; then # the arguments in the experiment are a GPU's
        arguments+=(--set backend.device=cpu --set "backend.version=$VERSION" --set 'backend.engine_args={}')
        arguments+=(--set backend.gpus=null)
    fi
    timeout --kill-after=30 "$LIMIT" "${SUITE[@]}" run "${arguments[@]}"
}

smoke() {
    local few=(-s fcfs -s dlpm --seed 0 --set backend.model=mid --set workload.rate=4)
    suite "$ENGINE-gpu" "${few[@]}" -o "$ROOT/runs/smoke" --fresh "$@" || {
        last_words smoke
        return 1
    }
    say "smoke: well"
}

experiment() {
    (($#)) && [[ $1 != -* ]] || fail "experiment: name one model"
    local model=$1
    shift
    measure "$ENGINE-gpu" "$model" --set "backend.model=$model" "$@"
}

replicas() {
    (($#)) && [[ $1 != -* ]] || fail "replicas: say how many"
    local number=$1
    shift
    measure "$ENGINE-replicas-gpu" "$number" --set "backend.replicas=$number" "$@"
}

# A part of an experiment, and an archive of it: the experiment's name, the part's, arguments that make it that part.
measure() {
    local name=$1 part=$2 status=0
    shift 2
    suite "$name" -o "$ROOT/runs/$name-$part" "$@" || status=$?
    pack "$name-$part"
    case $status in
        0) ;;
        124) say "stopped after $LIMIT s; the same command goes on where it stopped" ;;
        *) last_words "$name-$part" ;;
    esac
    return "$status"
}

# The end of the log of the server that was started last.
last_words() {
    local log
    log=$(find "$ROOT/runs/$1" -name server.log -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d' ' -f2-)
    [[ -z $log ]] || { say "$log" && tail -n 40 "$log"; }
}

# What is measured, and the servers' logs as long as they are short. The policies' logs are large and stay.
pack() {
    local archive=$OUT/$1.tar.gz
    (
        cd "$ROOT/runs/$1"
        find . -type f ! -name '*.jsonl' ! -path './figures/*' ! -name report.html -size -2048k -print0 |
            tar -czf "$archive" --null -T -
    )
    say "$archive: $(du -k "$archive" | cut -f1) kB"
}

stage=${1:-}
shift || true
case $stage in
    unpack | check | smoke | experiment | replicas) "$stage" "$@" ;;
    *) fail "no stage '$stage'; there are unpack, check, smoke, experiment, replicas" ;;
esac
