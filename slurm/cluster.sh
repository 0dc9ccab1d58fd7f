#!/usr/bin/env bash
# A SLURM cluster on this machine alone, to try the batch scripts on: slurm/cluster.sh up | down | status | jobs | env
#
#   eval "$(slurm/cluster.sh env)"     the shell's sbatch, squeue, ... then mean this cluster
#
# Needs Debian's or Ubuntu's packages slurm-wlm and munge; touches neither /etc/slurm nor a cluster that is there. All
# that it writes is in CLUSTER_DIR, all ports are on loopback. There are no cgroups, no accounting and no real GPUs.
#
#   CLUSTER_NODES   2    "nodes", n1, n2, ...: daemons of their own on this machine
#   CLUSTER_CPUS    2    processors that each says it has
#   CLUSTER_GPUS    0    GPUs that each says it has, so that requests for them can be scheduled
#   CLUSTER_PORT    16817, and as many above it as there are nodes
#   CLUSTER_CORES   processor cores that daemons and jobs keep to, as taskset takes them; all where it isn't set
set -euo pipefail

root=${CLUSTER_DIR:-/var/tmp/ldm-slurm}
nodes=${CLUSTER_NODES:-2}
cpus=${CLUSTER_CPUS:-2}
gpus=${CLUSTER_GPUS:-0}
port=${CLUSTER_PORT:-16817}
conf=$root/slurm.conf
PATH=$PATH:/usr/sbin:/sbin

fail() {
  echo "cluster.sh: $*" >&2
  exit 1
}

on_cores() { taskset --cpu-list "${CLUSTER_CORES:-0-$(($(nproc --all) - 1))}" "$@"; }

# until SECONDS COMMAND...: waits for a command to succeed
until_true() {
  local tries=$(($1 * 10))
  shift
  while ! "$@" >/dev/null 2>&1; do
    ((tries-- > 0)) || return 1
    sleep 0.1
  done
}

write_conf() {
  local gres='' node_gres=''
  if ((gpus > 0)); then
    for ((gpu = 0; gpu < gpus; gpu++)); do : >"$root/gpu$gpu"; done
    gres='GresTypes=gpu' node_gres="Gres=gpu:$gpus"
    echo "NodeName=n[1-$nodes] Name=gpu File=$root/gpu[0-$((gpus - 1))]" >"$root/gres.conf"
  fi
  cat >"$conf" <<EOF
ClusterName=ldm
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
# a job that queues again waits until its credential has expired, by default two minutes
AuthInfo=socket=$root/munge.socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation=$root/state
SlurmdSpoolDir=$root/spool.%n
SlurmctldPidFile=$root/slurmctld.pid
SlurmdPidFile=$root/slurmd.%n.pid
SlurmctldLogFile=$root/slurmctld.log
SlurmdLogFile=$root/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$root/jobs.log
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000,sched_interval=2,bf_interval=2
ReturnToService=2
KillWait=${CLUSTER_KILL_WAIT:-30}
MinJobAge=7200
$gres
NodeName=n[1-$nodes] NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + nodes))] CPUs=$cpus RealMemory=2000 $node_gres
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=10 State=UP
EOF
}

up() {
  for program in slurmctld slurmd munged sbatch; do
    command -v "$program" >/dev/null || fail "there is no $program: apt-get install slurm-wlm munge"
  done
  [ ! -e "$root" ] || fail "$root exists: slurm/cluster.sh down"
  mkdir -p -m 700 "$root/state"
  for ((node = 1; node <= nodes; node++)); do mkdir "$root/spool.n$node"; done
  trap down ERR
  head -c 1024 /dev/urandom >"$root/munge.key"
  chmod 400 "$root/munge.key"
  on_cores munged --force --key-file="$root/munge.key" --socket="$root/munge.socket" --pid-file="$root/munged.pid" \
    --log-file="$root/munged.log" --seed-file="$root/munge.seed"
  write_conf
  export SLURM_CONF=$conf
  on_cores slurmctld
  for ((node = 1; node <= nodes; node++)); do on_cores slurmd -N "n$node"; done
  until_true 30 all_idle || fail "the nodes did not come up: see $root/*.log, then slurm/cluster.sh down"
  sinfo
}

all_idle() { [ "$(sinfo --noheader --format=%t | sort -u)" = idle ]; }

# Ends the jobs first, then the daemons that this cluster's own pid files name.
down() {
  trap - ERR
  [ -d "$root" ] || return 0
  export SLURM_CONF=$conf
  if scancel --user="$(id -un)" 2>/dev/null; then until_true 60 no_jobs || :; fi
  for file in "$root"/slurmd.*.pid "$root"/slurmctld.pid "$root"/munged.pid; do
    [ -f "$file" ] || continue
    local pid
    pid=$(<"$file")
    kill "$pid" 2>/dev/null || continue
    until_true 20 gone "$pid" || kill -KILL "$pid" 2>/dev/null || :
  done
  rm -rf "$root"
}

no_jobs() { [ -z "$(squeue --noheader)" ]; }
gone() { ! kill -0 "$1" 2>/dev/null; }

# A line for each job of the last two hours.
list_jobs() {
  SLURM_CONF=$conf scontrol show jobs --oneliner | awk '
    function remember(word, at) {
      at = index(word, "=")
      if (at && !(substr(word, 1, at - 1) in f)) f[substr(word, 1, at - 1)] = substr(word, at + 1)
    }
    BEGIN {
      row = "%-10s %-14s %-11s %-5s %8s %6s %10s\n"
      printf row, "job", "name", "state", "exit", "restarts", "nodes", "time"
    }
    /^JobId=/ {
      delete f
      for (i = 1; i <= NF; i++) remember($i)
      id = ("ArrayJobId" in f) ? f["ArrayJobId"] "_" f["ArrayTaskId"] : f["JobId"]
      printf row, id, f["JobName"], f["JobState"], f["ExitCode"], f["Restarts"], f["NumNodes"], f["RunTime"]
    }'
}

case ${1:-} in
  up) up ;;
  down) down ;;
  status) SLURM_CONF=$conf sinfo && SLURM_CONF=$conf squeue ;;
  jobs) list_jobs ;;
  env) echo "export SLURM_CONF=$conf" ;;
  *) fail "usage: slurm/cluster.sh up | down | status | jobs | env" ;;
esac
