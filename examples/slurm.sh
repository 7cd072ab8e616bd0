#!/bin/bash
# Two nodes of four GPUs each as one run; sbatch examples/slurm.sh
# Untried: its syntax was checked (bash -n), no cluster was at hand.
#SBATCH --job-name=underpaint
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue

set -euo pipefail
run=${RUN:-runs/cluster} # on a disk that all nodes share, as the cache
data=${DATA:?set DATA to the folder of the images}
export UNDERPAINT_CACHE=${UNDERPAINT_CACHE:-$PWD/cache}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

how=(--data "$data")
if [ -f "$run/checkpoints/LATEST" ]; then # the job was put back into the queue
    how=(--resume)
fi

srun torchrun \
    --nnodes "$SLURM_NNODES" --nproc-per-node 4 --max-restarts 3 \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$first:29500" \
    -m underpaint train "${how[@]}" --out "$run"
