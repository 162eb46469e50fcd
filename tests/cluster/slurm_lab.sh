#!/usr/bin/env bash
# A SLURM of its own on this host, for tests: one controller and three nodes under one folder, no system file touched.
#   slurm_lab.sh start FOLDER    then: export SLURM_CONF=FOLDER/slurm.conf PATH=FOLDER/bin:$PATH
#   slurm_lab.sh stop FOLDER     ends all jobs and daemons; FOLDER stays
# Needs root and the packages slurm-wlm and munge. FOLDER must be short: Unix sockets lie in it.
set -euo pipefail
action=$1 lab=$2
nodes=(n1 n2 n3)
here=$(dirname "$(readlink -f "$0")")
export SLURM_CONF=$lab/slurm.conf PATH=$PATH:/usr/sbin:/sbin

poll() { # poll SECONDS COMMAND...: until the command succeeds
    local end=$((SECONDS + $1)); shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || { echo "gave up on: $*" >&2; return 1; }
        sleep 0.1
    done
}

free_ports() { # four neighbouring TCP ports below the range that the kernel hands out
    python3 - <<'PY'
import random, socket

def free(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0

print(next(base for base in iter(lambda: random.randrange(20000, 31000, 4), None) if all(map(free, range(base, base + 4)))))
PY
}

write_config() {
    local port host; port=$(free_ports); host=$(hostname -s)
    {
        cat <<CONF
ClusterName=lab
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
# Ports of jobs go by their numbers: those of two such SLURMs, and of the daemons, must not meet.
FirstJobId=$((port + 5000))
SlurmUser=root
SlurmdUser=root
# A requeued job waits until its old credential has expired: 120 s if not said otherwise, 5 is the least.
AuthInfo=socket=$lab/munge/socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPidFile=$lab/pid/slurmctld
SlurmdPidFile=$lab/pid/slurmd-%n
SlurmctldLogFile=$lab/log/slurmctld
SlurmdLogFile=$lab/log/slurmd-%n
StateSaveLocation=$lab/state
SlurmdSpoolDir=$lab/spool-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
# Each node has more cores and memory than it shares of this host.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=500
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=30
SlurmdTimeout=10
MinJobAge=3600
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
PartitionName=main Nodes=ALL Default=YES PriorityTier=10 PreemptMode=OFF
PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE
CONF
        local number=0
        for node in "${nodes[@]}"; do
            number=$((number + 1))
            echo "NodeName=$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + number)) CPUs=4 RealMemory=8000"
        done
    } >"$SLURM_CONF"
    # slurmd asks for a cgroup file system that a container may lack, though no plugin here uses one.
    printf 'CgroupPlugin=cgroup/v1\nCgroupMountpoint=%s/cgroup\n' "$lab" >"$lab/cgroup.conf"
    { echo "127.0.0.1 localhost $host"; printf '127.0.0.1 %s\n' "${nodes[@]}"; } >"$lab/hosts"
}

all_idle() { [ "$(sinfo --noheader --Node --partition main --states idle --format %N | wc -l)" = ${#nodes[@]} ]; }

start() {
    chmod 755 "$lab"
    mkdir -p "$lab"/{munge,pid,log,state,bin}
    chmod 755 "$lab/munge"
    cp "$here/sacct" "$lab/bin/sacct"
    (umask 077; head -c 1024 /dev/urandom >"$lab/munge/key")
    munged --force --key-file="$lab/munge/key" --socket="$lab/munge/socket" --pid-file="$lab/pid/munged" \
        --log-file="$lab/log/munged" --seed-file="$lab/munge/seed"
    write_config
    slurmctld -i -c </dev/null >/dev/null 2>&1
    for node in "${nodes[@]}"; do
        # A host name of its own and a private /etc/hosts: what a job asks about its node is answered as on a real one.
        unshare --uts --mount sh -c "hostname $node; mount --bind $lab/hosts /etc/hosts; exec slurmd -N $node" \
            </dev/null >/dev/null 2>&1
    done
    poll 300 all_idle || { tail -n 20 "$lab"/log/* >&2; return 1; }
}

none_left() { [ -z "$(squeue --noheader)" ]; }

stop() {
    scancel --signal=KILL --full --user="$(id -un)" 2>/dev/null || true
    scancel --user="$(id -un)" 2>/dev/null || true
    poll 60 none_left || true
    for file in "$lab"/pid/*; do # nothing is kept, so nothing needs the seconds of an orderly end
        local name pid
        name=$(basename "${file%%-n*}")
        pid=$(cat "$file" 2>/dev/null) || continue
        if [[ $(cat "/proc/$pid/comm" 2>/dev/null) == "$name"* ]]; then kill -KILL "$pid"; fi
    done
}

case $action in start) start ;; stop) stop ;; *) sed -n '2,5p' "$0"; exit 2 ;; esac
