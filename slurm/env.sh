# Sourced by the batch scripts, on the first node of a job: the environment, and the ways in which a job runs.
#
#   LDM_PYTHON         the interpreter; .venv/bin/python where it isn't set
#   LDM_MAX_RESTARTS   how often a job may queue again by itself; 100 where it isn't set
#   MASTER_ADDR        where the processes meet; the job's first node where it isn't set
#
# Modules, containers and site settings (NCCL_SOCKET_IFNAME, ...) go into slurm/site.sh, which is read if it exists.
set -euo pipefail

refuse() {
  echo "ldm: $*" >&2
  exit 1
}

[ -n "${SLURM_JOB_ID:-}" ] || refuse "slurm/env.sh is for batch jobs: submit with sbatch slurm/train.sbatch ..."
trap 'refuse "the signal before the limit came before a task was started: submit with a longer --time"' USR1
[ ! -f slurm/site.sh ] || source slurm/site.sh

python=${LDM_PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null || refuse "$python does not exist in $PWD: run make setup, or set LDM_PYTHON"

job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
restarts=${SLURM_RESTART_COUNT:-0}
tasks=${SLURM_NTASKS_PER_NODE:-$((${SLURM_NTASKS:-1} / SLURM_NNODES))}

export PYTHONUNBUFFERED=1
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # since SLURM 22.05 a step doesn't inherit it
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SRUN_CPUS_PER_TASK}
export MASTER_ADDR=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
export MASTER_PORT=${MASTER_PORT:-$((15000 + SLURM_JOB_ID % 10000))}

echo "job $job on $SLURM_JOB_NODELIST: $SLURM_NNODES x $tasks tasks, start $((restarts + 1)), $(date -u +%FT%TZ)"

# step COMMAND...: one process a task. At the signal before the limit, and at preemption, the processes save,
# and this waits for them; `status` is the step's, `signalled` is not empty where the limit has come near.
step() {
  signalled='' status=0
  # the tasks that end first wait for those that still write
  srun --wait=60 "$@" &
  local process=$!
  trap 'signalled=yes; kill -USR1 "$process" || :' USR1
  trap ':' TERM # SLURM tells the processes itself
  while kill -0 "$process" 2>/dev/null; do
    wait "$process" && status=0 || status=$?
  done
  trap ':' USR1
}

# train ARGUMENTS...: ldm.train on all tasks of the job. A job that was stopped by the signal before its limit queues
# again, and the same command resumes its run.
train() {
  local devices=("trainer.devices=$tasks")
  [ "$SLURM_NNODES" = 1 ] || devices+=("trainer.num_nodes=$SLURM_NNODES")
  [ "$restarts" -gt 0 ] || "$python" -m ldm.preflight "${devices[@]}" "$@"
  step "$python" -m ldm.train "${devices[@]}" "$@"
  [ "$status" != 0 ] && [ -n "$signalled" ] || exit "$status"
  [ "$restarts" -lt "${LDM_MAX_RESTARTS:-100}" ] || refuse "job $job has queued again $restarts times: submit it anew"
  echo "job $job queues again, $(date -u +%FT%TZ)"
  scontrol requeue "$job"
  sleep 60 # until SLURM ends this start
}

# evaluate ARGUMENTS...: ldm.evaluate on all tasks of the job, with the environment that torchrun would give them.
evaluate() {
  step bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS exec "$@"' evaluate \
    "$python" -m ldm.evaluate "$@"
  exit "$status"
}
