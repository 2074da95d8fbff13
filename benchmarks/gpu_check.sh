#!/bin/bash
# What only a GPU can tell, in at most eight minutes on one H100: tests, whole runs, kill and resume, speed.
#
#     bash benchmarks/gpu_check.sh                   results in gpu_check/, a summary at the end
#     DRY=1 bash benchmarks/gpu_check.sh             the same script in tiny sizes on a CPU, in one precision
#
# OUT names another folder. FLOWERS17 is the path of 17flowers.tgz and WEIGHTS those of the networks (none). A part
# that fails or runs out of time does not stop the others; the exit code is then 1. What is not there is skipped.
set -u
cd "$(dirname "$0")/.." || exit 1
export PYTHONPATH=$PWD
out=$(realpath -m "${OUT:-gpu_check}") dry=${DRY:-} weights=${WEIGHTS:-none} failed=0 budget=480
flowers=${FLOWERS17:-${FLOWERS_TORCH_SHARED:-nowhere}/data/17flowers.tgz}
export FLOWERS_TORCH_CACHE=$out/cache
rm -rf "$out" && mkdir -p "$out"
device=cuda train="--arch inception_v3 --weights $weights" tiny="" precisions="fp32 bf16 fp16" compiled=resnet50
if [ "$dry" ]; then
    device=cpu train="--arch test_resnet --weights none --size 32 --epochs 1,1" precisions=fp32 compiled=test_resnet
    tiny="--device cpu --size 32 --batch-size 4 --steps 2 --rounds 1 --photos 60 --workers 0"
elif ! python -c "import torch, sys; sys.exit(not torch.cuda.is_available())"; then
    echo "torch sees no GPU; fix: DRY=1 bash benchmarks/gpu_check.sh" && exit 6
fi

# part NAME SECONDS COMMAND...: runs a command with a time limit and adds a line to the summary.
part() {
    local name=$1 limit=$2 started=$SECONDS left=$((budget - SECONDS)) status
    shift 2
    [ "$left" -lt "$limit" ] && limit=$left
    [ "$limit" -le 0 ] && { skip "$name" "no time left"; failed=1; return 1; }
    [ "$dry" ] && limit=$left
    timeout "$limit" "$@" >"$out/$name.log" 2>&1
    status=$?
    printf '%-26s %-12s %4d s  %s\n' "$name" "$([ $status = 0 ] && echo ok || echo "FAILED ($status)")" \
        $((SECONDS - started)) "$(grep -E '^(test  |[0-9]+ (passed|skipped|deselected))' "$out/$name.log" | tail -1)" \
        | tee -a "$out/summary.txt"
    [ $status = 0 ] || { failed=1; tail -5 "$out/$name.log"; }
    return $status
}

skip() { printf '%-26s skipped: %s\n' "$1" "$2" | tee -a "$out/summary.txt"; }

# run NAME SECONDS OPTION...: a training run into the folder of that name.
run() {
    local name=$1 limit=$2
    shift 2
    # shellcheck disable=SC2086  # the options are words
    part "$name" "$limit" python train.py $train --device $device --out "$out/$name" "$@"
}

# Kills a run without warning as soon as it has saved a checkpoint, and resumes it.
kill_and_resume() {
    # shellcheck disable=SC2086
    python train.py $train --data demo --device $device --out "$out/killed" --set checkpoint_minutes=0.001 &
    local run=$! waited
    for waited in $(seq 600); do
        [ -e "$out/killed/resume.safetensors" ] && break
        kill -0 $run 2>/dev/null || break
        sleep 0.1
    done
    kill -9 $run || return 1 # it had ended before there was anything to resume
    wait $run
    echo "killed after $waited tenths of a second"
    python train.py --resume "$out/killed" && [ -e "$out/killed/report.html" ]
}

# shellcheck disable=SC2046  # the files are words; without the options of pyproject.toml, which ask for more plugins
part tests 90 python -m pytest -o addopts=--import-mode=importlib -m gpu -q $(grep -rl pytest.mark.gpu tests)
for precision in $precisions; do
    run "demo-$precision" 45 --data demo --precision "$precision"
done
if [ -e "$flowers" ]; then
    for precision in $precisions; do
        run "flowers17-$precision" 45 --data "$flowers" --precision "$precision"
    done
else
    skip flowers17 "no archive at $flowers; set FLOWERS17"
fi
export -f kill_and_resume
export out train device
part kill-and-resume 60 bash -c kill_and_resume

contest="python benchmarks/gpu_training.py --batch-size 64 --steps 20 --rounds 3 --photos 1024"
# Images per second and memory beside timm and fastai; `noise` is synthetic, `jpegs` goes the way of the photos.
# shellcheck disable=SC2086
part contest 150 $contest $tiny --results "$out/contest.jsonl"
# shellcheck disable=SC2086
part compiled 100 $contest $tiny --arch $compiled --only noise --contestants ours --results "$out/compiled.jsonl" \
    --set 'accelerate="auto+compile"'
cat "$out/contest.log" "$out/compiled.log"
echo "$SECONDS s, summary in $out/summary.txt"
cat "$out/summary.txt"
exit $failed
