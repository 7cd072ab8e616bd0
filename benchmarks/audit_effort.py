"""Do the attacks of `audit` find as much as those of `audit --thorough`, which take longer?

    python benchmarks/audit_effort.py RUN [--steps 80 200]

A copy of the run's network is trained on 32 of its non-members, and after each number of steps, so
at leaks from hardly to plainly seen, it is attacked with the noises and masks of both. Writes each
attack's best AUC over the noise levels, and CPU seconds, to benchmarks/results/audit_effort.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from pathlib import Path
from typing import Any

PLANTED, OTHERS = 32, 128
BATCH, RATE = 16, 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--steps", type=int, nargs="+", default=[80, 200])
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "audit_effort.json"
    )
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    from underpaint import model, model_folder
    from underpaint.core.loss import DenoisingLoss
    from underpaint.core.masks import Mask
    from underpaint.privacy import attacks, audit, membership
    from underpaint.privacy.statistics import auc_by_level

    torch.set_num_threads(1)
    loaded = model.load(given.run)
    found = membership.load(model_folder.find(given.run), loaded, None, None)
    subset = membership.subsample(found.non_members, PLANTED + OTHERS, 0)
    patches, labels = subset.patches(), subset.labels(loaded)
    order = torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))
    parts = [
        (patches[ids], None if labels is None else labels[ids])
        for ids in (order[:PLANTED], order[PLANTED:])
    ]
    efforts = {"quick": audit.QUICK, "thorough": audit.THOROUGH}

    network = copy.deepcopy(loaded.denoiser).eval().requires_grad_(True)
    loss, generator = DenoisingLoss(network), torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(network.parameters(), lr=RATE)
    rows, done = [], 0
    images, classes = parts[0]
    for until in given.steps:
        for _ in range(until - done):
            ids = torch.randint(PLANTED, (BATCH,), generator=generator)
            t = network.process.draw_t(len(ids), generator, "cpu")
            noise = torch.randn(images[ids].shape, generator=generator)
            condition = None if classes is None else classes[ids]
            mean = loss(images[ids], condition, Mask(loaded.space.grid), t, noise).mean
            optimiser.zero_grad()
            mean.backward()
            optimiser.step()
        done = until
        row: dict[str, Any] = {"steps": done}
        for name, effort in efforts.items():
            began = time.process_time()
            scores = [
                attacks.scores(
                    network,
                    x,
                    list(attacks.ATTACKS),
                    attacks.levels(network.process),
                    labels=y,
                    noises=effort.noises,
                    ensemble=attacks.Ensemble(masks=effort.masks),
                )
                for x, y in parts
            ]
            best = {k: round(max(auc_by_level(scores[0][k], scores[1][k])), 3) for k in scores[0]}
            row[name] = {"auc": best, "cpu_seconds": round(time.process_time() - began, 1)}
        print(json.dumps(row), flush=True)
        rows.append(row)
    result = {
        "planted": PLANTED,
        "others": len(parts[1][0]),
        "settings": {n: {"noises": e.noises, "masks": e.masks} for n, e in efforts.items()},
        "rows": rows,
        "torch": torch.__version__,
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
