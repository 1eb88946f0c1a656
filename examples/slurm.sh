#!/usr/bin/env bash
# Train on several nodes under Slurm, for longer than a job may take: two minutes before its time limit the job saves, and
# queues itself again. The arguments are those of p1_train.py:
#
#     sbatch examples/slurm.sh --data p1_data --output runs/headline
#
#SBATCH --job-name=vit-pets
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-gpu=8
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
. "${VENV:-.venv}/bin/activate"

# Slurm sends the signal to this script alone, which must know that the job is to go on.
stopped=
trap 'stopped=yes; scancel --signal=TERM "$SLURM_JOB_ID"' TERM

nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
meeting=${nodes%%$'\n'*}:$((10000 + SLURM_JOB_ID % 20000))  # jobs may share a node: a port of its own
srun --kill-on-bad-exit=1 torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
    --max-restarts 3 --rdzv-backend c10d --rdzv-endpoint "$meeting" --rdzv-id "$SLURM_JOB_ID" \
    p1_train.py --save-every 600s --resume "$@" &
training=$! code=0
wait $training || code=$?
if [ -n "$stopped" ]; then
    wait $training || true  # until it has saved: the signal ended the first wait
    scontrol requeue "$SLURM_JOB_ID"
    code=0
fi
exit $code
