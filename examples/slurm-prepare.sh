#!/bin/bash
# Shards indexed by 16 jobs; sbatch examples/slurm-prepare.sh, then `underpaint prepare` once without --part
# Untried: its syntax was checked (bash -n), no cluster was at hand.
#SBATCH --job-name=underpaint-prepare
#SBATCH --array=1-16
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00

set -euo pipefail
data=${DATA:?set DATA to the list of the shards}
export UNDERPAINT_CACHE=${UNDERPAINT_CACHE:-$PWD/cache} # on a disk that all nodes share

srun underpaint prepare "$data" --size "${SIZE:-64}" --part "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
