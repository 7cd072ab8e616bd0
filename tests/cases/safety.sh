#!/bin/bash
# What deleted or read what it must not at 6c4c2cf, in the words of today. In an empty folder:
#     UNDERPAINT=/path/to/underpaint bash safety.sh
: "${UNDERPAINT:=underpaint}"; U=$UNDERPAINT; P=$(dirname "$(command -v $U)")/python
$U --version || { echo "no underpaint"; exit 1; }
export UNDERPAINT_CACHE=$PWD/cache OMP_NUM_THREADS=1
cat > small.yaml <<'R'
network: {width: 64, depth: 1, heads: 2}
stages:
  masked: {images: 64, mask: patch, rate: 0.5, batch: 8}
  whole: {images: 64, batch: 8}
train: {threads: 1, check_images: 8}
sampling: {count: 4, steps: 2}
R
T="--config $PWD/small.yaml --size 16 --quiet"
$P - <<'Q'
import os, numpy as np
from PIL import Image
r = np.random.default_rng(0)
for i in range(30):
    os.makedirs(f"photos/c{i % 2}", exist_ok=True)
    Image.fromarray(r.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(f"photos/c{i % 2}/{i:05d}.png")
Q
echo "S1 --- --overwrite on a folder that is no run but has a config.yaml"
mkdir -p project/samples project/checkpoints; echo "title: my blog" > project/config.yaml; echo song > project/samples/precious.wav
$U train --data photos $T --out project --overwrite > /dev/null 2>&1; [ -e project/samples/precious.wav ] && echo pass || echo "FAIL: the user's files are gone"
echo "S2 --- a folder of the user's in checkpoints/ is deleted by --resume"
$U train --data photos $T --out run > /dev/null || { echo "FAIL: the set-up of S2 did not train"; exit 1; }; cp -r run link
first=$(ls run/checkpoints | grep '^0' | head -n 2 | tail -n 1)
cp -r run/checkpoints/$first run/checkpoints/my-best; echo $first > run/checkpoints/LATEST
$U train --resume --out run --quiet > /dev/null; [ -d run/checkpoints/my-best ] && echo pass || echo "FAIL: my-best was deleted"
echo "S3 --- LATEST that points outside"
cp -r run evil; mkdir -p good; cp -r link/checkpoints/* good/; echo "../../good/$first" > evil/checkpoints/LATEST
$U train --resume --out evil --quiet; echo "exit $?; checkpoints left: $(ls evil/checkpoints | grep -c '^0')"
echo "S4 --- samples/ is a link to another disk"
mv link/samples big; ln -s "$PWD/big" link/samples; $U train --data photos $T --out link --overwrite 2>&1 | tail -n 1; echo "checkpoints left: $(ls link/checkpoints 2> /dev/null | wc -l)"
echo "S5 --- a run from a stranger: its metrics name a file outside as a sample grid"
cp -r run stranger; echo secret > secret.txt
$P - <<'Q'
import json, os
p = "stranger/metrics.jsonl"; lines = [json.loads(x) for x in open(p)]
for m in lines:
    if "file" in m: m["file"] = os.path.abspath("secret.txt")
open(p, "w").write("\n".join(map(json.dumps, lines)) + "\n")
Q
$U report stranger > /dev/null 2>&1; $P -c "
import base64; t = open('stranger/report.html').read(); print('FAIL: embedded' if base64.b64encode(b'secret\n').decode() in t else 'pass')"
echo "S6 --- PostScript in a file named .png reaches an interpreter"
mkdir bin; printf '#!/bin/sh\necho "gs $*" >> %s/CALLED\nexit 0\n' "$PWD" > bin/gs; chmod +x bin/gs
printf '%%!PS-Adobe-3.0 EPSF-3.0\n%%%%BoundingBox: 0 0 16 16\n%%%%EndComments\nshowpage\n%%%%EOF\n' > photos/c0/x.png
PATH=$PWD/bin:$PATH $U prepare photos --size 16 --max-bad 0.5 > /dev/null 2>&1; [ -e CALLED ] && echo "FAIL: it was run" || echo pass
