#!/usr/bin/env bash
# One command for a GPU: bash bench/gpu_session.sh OUT [MINUTES]
# Tests, check, ceilings, tuning, benchmarks and networks within so many minutes (default 20), from a checkout, without a
# network. Each step has its share of the time, its log in OUT/logs and a line in OUT/steps.tsv; none stops the others.
# Ctrl-C ends the running step and what is left, and the report is still written. Status 2 without a GPU or a folder.
# CBAM_TRITON_SESSION=dry tries the steps on a machine without a GPU, with the interpreter and a made-up clock.
set -u
cd "$(dirname "$0")/.." || exit 2
out=${1:-}
minutes=${2:-20}
dry=${CBAM_TRITON_SESSION:-}
if [ -z "$out" ] || ! [[ $minutes =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: bash bench/gpu_session.sh OUT [MINUTES]" >&2
    exit 2
fi
python=$(command -v python3 || command -v python) || { echo "gpu_session: there is no python here" >&2; exit 2; }
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
mkdir -p "$out/logs" || exit 2
out=$(cd "$out" && pwd)
if [ "$dry" = dry ]; then
    export TRITON_INTERPRET=1
elif ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>"$out/logs/start.log"; then
    echo "gpu_session: PyTorch sees no GPU here: see $out/logs/start.log and python3 -m cbam_triton info" >&2
    exit 2
fi
printf 'step\tstatus\tseconds\n' >"$out/steps.tsv"
stopped=
trap 'stopped=yes' INT TERM

has() { "$python" -c "import $1" 2>/dev/null; }

# step NAME SHARE COMMAND...: SHARE percent of the minutes; 124 is the status of a step that ran out of them.
step() {
    local name=$1 limit=$(($2 * minutes * 60 / 100)) begin=$SECONDS status
    shift 2
    if [ -n "$stopped" ]; then
        printf '%s\tleft out\t0\n' "$name" >>"$out/steps.tsv"
        return
    fi
    printf '%-12s at most %4ss ... ' "$name" "$limit"
    timeout --signal=INT --kill-after=10 "$limit" "$@" >"$out/logs/$name.log" 2>&1
    status=$?
    printf 'status %s after %ss\n' "$status" "$((SECONDS - begin))"
    printf '%s\t%s\t%s\n' "$name" "$status" "$((SECONDS - begin))" >>"$out/steps.tsv"
}

bench() { "$python" -m bench "$@"; }
export -f bench
export python

shapes=(32x256x56x56 32x512x28x28 32x1024x14x14 32x2048x7x7)
tests=(tests/kernels tests/test_capture.py)
tuning=(--clock graph --budget 40)
check=() networks=() runs=(--seconds 1)
if [ "$dry" = dry ]; then
    shapes=(1x16x4x4)
    tests=(tests/kernels/test_views.py)
    tuning=(--device cpu --clock stub --budget 3)
    check=(--compile-seconds 0) networks=(--device cpu --model resnet18 --size 32 --batch 2 --seconds 0.1 --mode inference)
    runs=(--seconds 0.1 --no-compile --device cpu)
fi
workers=()
has xdist && workers=(-n 8)
plugins=(-p no:cacheprovider)
has pytest_benchmark && plugins+=(-p no:benchmark)

step environment 2 "$python" -m cbam_triton info
if has pytest && has hypothesis; then
    step tests 20 "$python" -m pytest -q "${workers[@]}" "${plugins[@]}" -m "not slow" "${tests[@]}"
else
    printf 'tests\tleft out: pip install pytest hypothesis\t0\n' >>"$out/steps.tsv"
fi
step check 8 "$python" -m cbam_triton --output "$out/logs/check" "${check[@]}"
[ "$dry" = dry ] || step device 5 "$python" -m bench device --out "$out/device.json"
step run 12 "$python" -m bench run --shapes "${shapes[@]}" "${runs[@]}" --out "$out/run.csv"
step training 15 "$python" -m bench run --backward --shapes "${shapes[@]}" "${runs[@]}" --out "$out/training.csv"
step tune 22 "$python" -m bench tune --shapes "${shapes[@]}" --step forward backward "${tuning[@]}" --out "$out/trials.jsonl"
step distill 2 "$python" -m bench distill "$out/trials.jsonl" --out "$out/table.json"
step network 10 "$python" -m bench network "${networks[@]}" --out "$out/network.jsonl"
stopped=
step trials 2 "$python" -m bench report "$out/trials.jsonl" --out "$out/logs/trials"
step plot 1 "$python" -m bench plot "$out/run.csv" --out "$out/logs/run.png"
step report 2 "$python" -m bench session "$out"
echo "Done: $out/report.html, and the numbers beside it."
