#!/usr/bin/env bash
# Training on several machines with SLURM. The arguments of the script are passed to `ifkd`:
#
#   sbatch --nodes 4 configs/clusters/slurm.sh distill harbor.toml --out /storage/runs/harbor/distilled
#
# Activate the environment with ifkd before submitting. Data and run folders must be on storage shared by all machines.
# To resume a stopped job, submit it again.
#
#SBATCH --job-name=ifkd
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1     # one torchrun per machine, which starts its processes
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue               # after the failure of a machine
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

processes=${PROCESSES:-gpu} # per machine; gpu means one per GPU
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=${RENDEZVOUS_PORT:-$((20000 + SLURM_JOB_ID % 10000))} # differs between jobs on the same machine

# Otherwise, restarted processes wait for processes that have ended (github.com/pytorch/pytorch/issues/135712).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_JOB_NUM_NODES" \
  --nproc-per-node "$processes" \
  --rdzv-id "$SLURM_JOB_ID" \
  --rdzv-backend c10d \
  --rdzv-endpoint "$host:$port" \
  --max-restarts "${RESTARTS:-3}" \
  -m ifkd "$@"
