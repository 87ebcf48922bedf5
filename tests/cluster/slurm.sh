#!/bin/bash
# A Slurm cluster for the tests: munged, slurmctld and two slurmd, on the loopback, without systemd or slurmdbd. Both nodes
# are this machine, with all of its processors each; gpu1 has a GPU, which is a character device.
#
#   slurm.sh start DIR     start it; afterwards `. DIR/env` puts its sbatch, srun, squeue... first on PATH
#   slurm.sh status DIR    say what runs; exit status 0 only where both nodes take jobs
#   slurm.sh stop DIR      cancel its jobs and end its daemons; logs stay in DIR/log
#
# Keys, sockets, state and logs all live in DIR; nothing else is written. Needs Debian's slurm-wlm and munge (built with
# --enable-multiple-slurmd, as they are), and a host name that resolves to a loopback address. SLURM_TEST_PORT names the
# first of the three neighbouring TCP ports to try.
set -euo pipefail
umask 022
PATH=/usr/sbin:/usr/bin:/sbin:/bin:$PATH # the system's first: a cluster's own commands may be on PATH (DIR/env)
readonly NODES="cpu1 gpu1"
readonly DAEMONS="munged slurmctld slurmd-cpu1 slurmd-gpu1" # in the order of their start; the command, and its node
readonly CLIENTS="sbatch srun squeue scancel sinfo scontrol sacct sacctmgr sshare"
readonly MARK=.test-cluster # in a folder that this script may empty
readonly PORT_TRIES=10 START_SECONDS=30 CANCEL_SECONDS=20 TERM_SECONDS=10

die() {
    echo "slurm.sh: $*" >&2
    exit 1
}

# The process id of one of this cluster's daemons, where it lives: a zombie or a reused number does not count.
pid_of() {
    local pid
    pid=$(cat "$DIR/run/$1.pid" 2>/dev/null) && [[ $(ps -o stat=,comm= -p "$pid") =~ ^[^Z].*\ ${1%-*}$ ]] && echo "$pid"
}

alive() { pid_of "$1" >/dev/null; }

# Run a Slurm command of this cluster; one that hangs has failed.
client() { SLURM_CONF=$DIR/slurm.conf timeout 5 "$@"; }

# The nodes' states in Slurm's words, a line for each; nothing where no slurmctld runs (a client would wait for it).
node_states() { ! alive slurmctld || client sinfo --Node --noheader --format=%T 2>/dev/null || true; }

both_alive() { alive slurmd-cpu1 && alive slurmd-gpu1; }

takes_jobs() { both_alive && [[ $(node_states) =~ ^(idle|mixed|allocated)$'\n'(idle|mixed|allocated)$ ]]; }

# Wait for a condition (a command) for some seconds.
wait_for() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < end)) || return 1
        sleep 0.1
    done
}

# Start a daemon by its name in DAEMONS. A session of its own: Ctrl-C in the terminal of whoever started the cluster must
# not reach its daemons.
launch() {
    local name=$1
    shift
    setsid "${name%-*}" "$@" </dev/null >>"$DIR/log/$name.log" 2>&1 &
    echo $! >"$DIR/run/$name.pid"
    wait_for "$START_SECONDS" begun "${name%-*}" $!
}

# True once a child runs (or has ended) under its own name, which is what `pid_of` knows it by.
begun() { [[ $(ps -o comm= -p "$2") =~ ^($1.*|)$ ]]; }

check_machine() {
    local command missing=
    for command in munged slurmctld slurmd $CLIENTS; do
        command -v "$command" >/dev/null || missing+=" $command"
    done
    [[ -z $missing ]] || die "not installed:$missing. Try: apt-get install slurm-wlm munge"

    HOST=$(hostname -s)
    ADDRESS=$(getent ahostsv4 "$HOST" | awk 'NR == 1 {print $1}') || true
    [[ $ADDRESS == 127.* ]] || die "the host name $HOST resolves to '${ADDRESS:-nothing}', and Slurm would listen" \
        "there. It has to be a loopback address: add the line '127.0.0.1 $HOST' to /etc/hosts and try again."

    [[ $(slurmd -h 2>&1) == *"-N node"* ]] || die "this slurmd was built without --enable-multiple-slurmd"

    # 108 bytes are all that a Unix socket's name may have (unix(7)); the longest here is DIR/run/munge.socket.
    [[ $DIR =~ ^[A-Za-z0-9/_.-]{1,80}$ ]] || die "$DIR: a path of at most 80 plain characters is needed"
    [[ -e $DIR/$MARK || -z $(ls -A "$DIR" 2>/dev/null) ]] || die "$DIR is not empty: name a new folder"
}

write_config() {
    local port=$1
    # A job gets CUDA_VISIBLE_DEVICES=0 for it, and nothing that CUDA could use.
    echo "NodeName=gpu1 Name=gpu File=/dev/null" >"$DIR/gres.conf"
    cat >"$DIR/slurm.conf" <<END
ClusterName=test
SlurmctldHost=$HOST($ADDRESS)
SlurmctldPort=$port
# Without these two the daemons listen on every interface.
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$DIR/run/munge.socket
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool/%n
# Not DIR/run: a daemon that is about to fail removes its file and lives on for a moment.
SlurmctldPidFile=$DIR/state/slurmctld.pid
SlurmdPidFile=$DIR/spool/%n/slurmd.pid
# No cgroups: a container seldom may write to them. Affinity gives each step its CPUs, as a real cluster does.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
# End jobs that take more memory than they asked for: looked up every second, since there are no cgroups.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
JobCompType=jobcomp/filetxt
JobCompLoc=$DIR/log/jobcomp.log
# squeue and scontrol know finished jobs for this long (seconds).
MinJobAge=3600
SchedulerParameters=batch_sched_delay=1
KillWait=5
MailProg=/bin/true
PropagateResourceLimits=NONE
# Believe the lines below, not what slurmd finds: memory is counted, and jobs here take little of what they ask for.
# (nproc would believe OpenMP's variable, which the tests set.)
SlurmdParameters=config_overrides
NodeName=DEFAULT CPUs=$(env -u OMP_NUM_THREADS nproc) RealMemory=64000
NodeName=cpu1 NodeHostname=$HOST NodeAddr=$ADDRESS Port=$((port + 1)) Feature=plain
NodeName=gpu1 NodeHostname=$HOST NodeAddr=$ADDRESS Port=$((port + 2)) Feature=accelerated Gres=gpu:1
PartitionName=main Nodes=ALL Default=YES DefaultTime=60 State=UP
END
    # slurmstepd calls srun back on 127.0.0.1. Bound to another loopback address (Debian's 127.0.1.1) srun is not heard.
    if [[ $ADDRESS == 127.0.0.1 ]]; then
        cp "$DIR/slurm.conf" "$DIR/client.conf"
    else
        grep -v ^CommunicationParameters "$DIR/slurm.conf" >"$DIR/client.conf"
    fi
}

# Snakemake's job step takes all SLURM_* variables away before it calls srun, so the commands set their own.
write_clients() {
    local command
    for command in $CLIENTS; do
        printf '#!/bin/sh\nSLURM_CONF=%s exec %s "$@"\n' \
            "$DIR/client.conf" "$(command -v "$command")" >"$DIR/bin/$command"
        chmod +x "$DIR/bin/$command"
    done
    echo "export PATH=$DIR/bin:\$PATH" >"$DIR/env"
}

# True once slurmctld listens on the port and answers; also true, to end the wait, once it has died.
answers() {
    ! alive slurmctld || { (: <"/dev/tcp/$ADDRESS/$1") 2>/dev/null && client scontrol ping &>/dev/null; }
}

# True once both nodes are idle; also true, to end the wait, once a daemon has died.
settled() { [[ $(node_states) == idle$'\n'idle ]] || ! alive slurmctld || ! both_alive; }

end_daemon() {
    local pid
    pid=$(pid_of "$1") || return 0
    kill "$pid"
    if ! wait_for "$TERM_SECONDS" not_alive "$1"; then
        echo "slurm.sh: $1 ($pid) did not end on SIGTERM: killing it" >&2
        kill -KILL "$pid"
    fi
    rm -f "$DIR/run/$1.pid"
}

not_alive() { ! alive "$1"; }

start_munged() {
    (umask 077 && head -c 1024 /dev/urandom >"$DIR/key/munge.key")
    # --force: the folder need not belong to root all the way up.
    launch munged --foreground --force --key-file="$DIR/key/munge.key" --seed-file="$DIR/key/seed" \
        --socket="$DIR/run/munge.socket" --pid-file="$DIR/state/munged.pid" --log-file="$DIR/log/munged.log"
    wait_for "$START_SECONDS" test -S "$DIR/run/munge.socket" || give_up "munged made no socket"
}

give_up() {
    tail -n 15 "$DIR"/log/*.log >&2
    stop
    die "$1; the ends of the logs are above, all of them in $DIR/log"
}

start() {
    check_machine
    if takes_jobs; then
        echo "already running: . $DIR/env"
        return
    fi
    stop
    # A fresh cluster each time: no job of an earlier one comes back.
    if [[ -e $DIR/$MARK ]]; then
        rm -rf "${DIR:?}"/{state,spool,key,run,log,bin}
    fi
    mkdir -p "$DIR"
    : >"$DIR/$MARK"
    mkdir "$DIR"/{state,spool,key,run,log,bin}
    chmod 700 "$DIR/key"
    write_clients
    start_munged
    local try node port=${SLURM_TEST_PORT:-$((20000 + RANDOM % 10000))}
    for ((try = 0; try < PORT_TRIES; try++, port += 3)); do
        write_config "$port"
        export SLURM_CONF=$DIR/slurm.conf
        launch slurmctld -D -i
        # A slurmd that finds no slurmctld tries again only 5 seconds later, and until then takes no SIGTERM.
        wait_for "$START_SECONDS" answers "$port" || give_up "slurmctld does not answer on port $port"
        if alive slurmctld; then
            for node in $NODES; do
                launch "slurmd-$node" -D -N "$node"
            done
            wait_for "$START_SECONDS" settled || give_up "the nodes are '$(node_states)' after $START_SECONDS s, not idle"
        fi
        if alive slurmctld && both_alive; then
            echo "running on $ADDRESS, ports $port to $((port + 2)): . $DIR/env"
            return
        fi
        grep -qs "Address already in use" "$DIR"/log/slurm*.log || give_up "a daemon ended at once"
        echo "slurm.sh: one of the ports $port to $((port + 2)) is taken, trying the next" >&2
        end_daemon slurmd-gpu1
        end_daemon slurmd-cpu1
        end_daemon slurmctld
        rm -rf "$DIR"/log/slurm*.log
    done
    give_up "no free port in $PORT_TRIES tries"
}

no_jobs() { [[ -z $(client squeue --noheader --format=%A || echo unknown) ]]; }

stop() {
    local daemon
    # A slurmd that ends leaves the processes of running jobs behind: the jobs have to go first.
    if alive slurmctld && ! no_jobs; then
        client squeue --noheader --format=%A | sort -u | client xargs scancel || true
        wait_for "$CANCEL_SECONDS" no_jobs || echo "slurm.sh: jobs are left after $CANCEL_SECONDS s" >&2
    fi
    for daemon in slurmd-gpu1 slurmd-cpu1 slurmctld munged; do
        end_daemon "$daemon"
    done
}

status() {
    local daemon
    for daemon in $DAEMONS; do
        echo "$daemon: $(pid_of "$daemon" || echo "not running")"
    done
    client sinfo --Node --noheader --format="%N: %T" 2>/dev/null || true
    takes_jobs
}

[[ $# == 2 && $1 =~ ^(start|stop|status)$ ]] || die "usage: $0 start|stop|status DIR"
DIR=$(realpath -m "$2")
"$1"
