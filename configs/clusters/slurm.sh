#!/usr/bin/env bash
# Training on several machines under SLURM; everything after the script's name is given to `ifkd`:
#
#   sbatch --nodes 4 configs/clusters/slurm.sh distill configs/harbor.toml --out /storage/runs/harbor/distilled
#
# Submit it with the environment active in which ifkd is installed, and give the folders of data and run on storage that
# all machines see. When the job was stopped, submit it again: it goes on from its last state.
#
#SBATCH --job-name=ifkd
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1     # one torchrun a machine, which starts the processes there
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue               # after a machine has failed
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

processes=${PROCESSES:-gpu} # of each machine; gpu means one for each GPU
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=${RENDEZVOUS_PORT:-$((20000 + SLURM_JOB_ID % 10000))} # jobs that share a machine do not meet

# Without it, processes that are restarted look for those that are gone (github.com/pytorch/pytorch/issues/135712).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_JOB_NUM_NODES" \
  --nproc-per-node "$processes" \
  --rdzv-id "$SLURM_JOB_ID" \
  --rdzv-backend c10d \
  --rdzv-endpoint "$host:$port" \
  --max-restarts "${RESTARTS:-3}" \
  -m ifkd "$@"
