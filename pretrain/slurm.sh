#!/bin/bash
# Pretrain on many nodes under SLURM, without ssh: srun starts one task per GPU, and each joins the others.
#
#   sbatch --nodes=4 pretrain/slurm.sh configs/pretrain/vit_large.yaml store=STORE output=RUN
#
# Before its time is up the job gets SIGUSR2, saves, ends with exit code 75 and is put back into the queue; the same
# command then goes on where it was. Any other exit code is final. Adapt the four resources below to the cluster.

#SBATCH --job-name=fmct-pretrain
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=USR2@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=fmct-%j.log

set -uo pipefail

MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# SLURM signals the tasks of srun itself; --kill-on-bad-exit ends the rest when one dies.
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" fmct pretrain "$@"
code=$?

# srun returns the highest exit code of its tasks.
if [ "$code" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
