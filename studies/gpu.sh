#!/bin/sh
# A part of a study on one GPU: at most ten minutes, then call it again until it says "done".
#
#   studies/gpu.sh acceleration|masks|maskdit|transfer|where|systems|batches [flags of the study]
#
# PART: seconds of a part (570). PYTHON: the interpreter (python3). OUT: a folder that gets a copy of
# the small files (JSON, YAML, PNG, HTML), where only such a folder outlives the machine.
set -u
cd "$(dirname "$0")/.." || exit 1
name=${1:?give the name of a study}
shift
PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
python=${PYTHON:-python3}
if [ -f "studies/$name/study.yaml" ]; then
  set -- -m underpaint compare "studies/$name/study.yaml" --out "studies/$name" --workers 1 "$@"
elif [ -f "studies/$name/run.py" ]; then
  set -- -m "studies.$name.run" "$@"
else
  echo "studies/gpu.sh: there is no study '$name'" >&2
  exit 2
fi
timeout -s INT "${PART:-570}" "$python" "$@"
code=$?
if [ -n "${OUT:-}" ]; then
  find studies runs -size -400k \( -name '*.json' -o -name '*.jsonl' -o -name '*.yaml' \
    -o -name '*.png' -o -name '*.html' \) -newer studies/gpu.sh -exec cp --parents {} "$OUT" \;
fi
case $code in
  0) echo "done" ;;
  124 | 130) echo "the part is over; call it again to go on"; code=0 ;;
esac
exit $code
