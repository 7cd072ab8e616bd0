#!/bin/bash
# Inputs that failed at 6c4c2cf, each alone, in the words of today. In an empty folder:
#     UNDERPAINT=/path/to/underpaint bash faults.sh
: "${UNDERPAINT:=underpaint}"; U=$UNDERPAINT; P=$(dirname "$(command -v $U)")/python
$U --version || { echo "no underpaint"; exit 1; }
export UNDERPAINT_CACHE=$PWD/cache OMP_NUM_THREADS=1
cat > small.yaml <<'R'
network: {width: 64, depth: 1, heads: 2}
stages:
  masked: {images: 64, mask: patch, rate: 0.5, batch: 16}
  whole: {images: 64, batch: 16}
sampling: {steps: 2}
R
T="--config $PWD/small.yaml --size 32 --quiet"
$U sample pretrained:lorelei -n 12 --steps 1 --out d/cats --quiet >/dev/null && $U sample pretrained:lorelei -n 12 --seed 50 --steps 1 --out d/dogs --quiet > /dev/null || { echo "FAIL: the set-up did not sample"; exit 1; }
echo "F1 --- run folder inside the data: cannot be resumed, grids become a class"
cp -r d f1; (cd f1; $U train --data . $T >/dev/null || echo "FAIL: the set-up of F1 did not train"; $U prepare . --size 32 | grep -e ^images -e ^labels; $U train --resume --out runs/f1)
echo "F2 --- tar cut between members / one hurt header / hurt gzip"
tar cf all.tar d; $P - <<'E2'
import tarfile, gzip, random
m = [x for x in tarfile.open("all.tar") if x.isfile()]; b = open("all.tar", "rb").read()
open("cut.tar", "wb").write(b[: m[12].offset]); h = bytearray(b); h[m[12].offset + 150] ^= 1; open("hurt.tar", "wb").write(h)
import zlib
from underpaint import config, data
for s in range(500):  # the first damage that tarfile lets through as zlib.error
    g = bytearray(gzip.compress(b, 9, mtime=0)); n = random.Random(s).randrange(len(g) // 4, len(g) - 600); g[n : n + 200] = random.Random(s).randbytes(200); open("hurt.tar.gz", "wb").write(g)
    try: data.prepare(config.Data(source="hurt.tar.gz", size=(32,), held_out="none"))
    except zlib.error: break
    except Exception: pass
E2
for f in cut.tar hurt.tar hurt.tar.gz; do echo "$f: $($U prepare $f --size 32 2>&1 | grep -e ^images -e Error -e underpaint: | tail -1)"; done
echo "F3 --- tar of class folders, zip with backslashes: labels lost in silence"
$U prepare all.tar --size 32 | grep ^labels
$P -c "
import zipfile, glob
with zipfile.ZipFile('win.zip', 'w') as z:
    for f in glob.glob('d/*/*.png'):
        i = zipfile.ZipInfo('x'); i.filename = f.replace('/', chr(92)); z.writestr(i, open(f, 'rb').read())"; $U prepare win.zip --size 32 | grep ^labels
echo "F4 --- WebDataset names with dots: all get the last label"
mkdir w; i=0; for f in d/cats/*; do i=$((i+1)); cp $f w/IMG.2024.$i.png; echo -n $((i%3)) > w/IMG.2024.$i.cls; done; tar cf dots.tar -C w .; $U prepare dots.tar --size 32 | grep ^labels
echo "F5 --- HEIC and files without suffix are ignored in silence"
cp -r d/cats f5; for i in $(seq 60); do printf '\0\0\0\030ftypheic' > f5/$i.HEIC; cp d/dogs/seed00000050*.png f5/noext$i; done; $U prepare f5 --size 32 | grep -e ^images -e ^unread
echo "F6 --- a Latin-1 name: traceback after training"
mkdir f6; cp -r d/dogs f6/dogs; cp -r d/cats f6/caf$'\xe9'; $U train --data f6 $T --out r6 2>&1 | tail -1; $U sample r6 -n 2 --steps 1 --out s6 2>&1 | tail -1
echo "F7 --- rich markup in names: wrong names, traceback"
mkdir f7; cp -r d/cats "f7/[old] cats"; cp -r d/dogs f7/dogs; $U prepare f7 --size 32 | grep ^labels; mkdir -p 'bl[/u]'; cp d/cats/* 'bl[/u]/'; $U prepare 'bl[/u]' --size 32 2>&1 | tail -1
echo "F8 --- --out=~ and Python: a folder named ~"
$U sample pretrained:lorelei -n 1 --steps 1 --quiet --out='~/u.png'; ls -d ./~
echo "F9 --- seed -1 is accepted, then a traceback"
$U train --data d $T --train.seed=-1 --train.check_images 1 --out r9 2>&1 | tail -1; $U train --resume --out r9 2>&1 | tail -1
echo "F10 --- YAML: a section given twice is dropped in silence; 2024_01"
printf 'train: {seed: 7}\ntrain: {ema: 0.9}\n' > c.yaml; $P -c "
from underpaint import config, errors
try: print('seed', config.load('c.yaml').train.seed)
except errors.UserError as e: print(e)"; cp -r d 2024_01; $U train --data.source 2024_01 --size 32 --dry-run 2>&1 | tail -1
echo "F11 --- evaluate: the advice leads in a circle"
mkdir mix; cp d/cats/* mix/; $P -c "
from PIL import Image
for i in range(70): Image.new('RGB', (40, 60), (i, 0, 0)).save(f'mix/{i}.png')"; $U evaluate mix --reference avatars:lorelei --held-out none --size 32 --quiet 2>&1 | tail -3
echo "F12 --- Python: values are not checked before hours of training; typos vanish; labels by number"
$P - <<'E3'
import dataclasses, pathlib, underpaint as up
def tried(what, *args, **kwargs):
    try: print("taken:", what(*args, **kwargs))
    except Exception as e: print(type(e).__name__, e)
r = up.preset("default"); r.data.source = "d"; r.data.size = (32,); r.network = dataclasses.replace(r.network, width=64, depth=1, heads=2)
for s in r.stages.values(): s.minutes, s.images, s.batch, s.warmup = 0.0, 64, 16, 0
tried(setattr, r.stages["whole"], "lr", 1e-9)
r.stages["whole"].schedule = "cosin"; tried(up.train, r, "r12", quiet=True)
m = up.load("pretrained:lorelei")
tried(m.sample, 2, labels=[], steps=1); tried(m.sample, 2, batch=-1, steps=1); tried(m.sample, 1, labels=["0"], steps=1)
r.stages["whole"].schedule = "cooldown"; r.data.source = pathlib.Path("d"); r.data.size = 32; tried(up.train, r, "r13", quiet=True)
E3
echo "F13 --- a terminal without UTF-8"
PYTHONIOENCODING=ascii $U prepare d --size 32 2>&1 | grep Error; PYTHONIOENCODING=latin-1 $U --help 2>&1 | tail -1
