#!/bin/sh
# Submit a job's script to LSF, SGE or PBS, and print the job's number.
#
#   submit.sh lsf|sge|pbs RULE THREADS MEM_MB MINUTES GPUS ALONE SCRIPT
#
# ALONE is 1 where the job needs its node to itself, else 0. This is where queues, projects and the site's own names go.
set -eu
system=$1 rule=$2 threads=$3 mem_mb=$4 minutes=$5 gpus=$6 alone=$7 script=$8
mkdir -p logs/cluster

case $system in
lsf) # memory in MB, or what LSF_UNIT_FOR_LIMITS says; prints "Job <7> is submitted to queue <normal>."
    set --
    [ "$alone" = 0 ] || set -- -x
    [ "$gpus" = 0 ] || set -- "$@" -gpu "num=$gpus"
    bsub -J "dinoquant_$rule" -o "logs/cluster/${rule}_%J.log" -n "$threads" -M "$mem_mb" -W "$minutes" \
        -R "span[hosts=1] rusage[mem=$mem_mb]" "$@" "$script" | sed 's/^[^<]*<\([0-9]*\)>.*/\1/'
    ;;
sge) # memory for each slot, time in seconds; `smp`, `exclusive` and `gpu` as the site has them (qconf -spl, qconf -sc)
    limits=h_vmem=$((mem_mb / threads))M,h_rt=$((minutes * 60))
    [ "$alone" = 0 ] || limits=$limits,exclusive=1
    [ "$gpus" = 0 ] || limits=$limits,gpu=$gpus
    qsub -terse -cwd -V -S /bin/bash -N "dinoquant_$rule" -j y -o logs/cluster -pe smp "$threads" -l "$limits" "$script"
    ;;
pbs) # PBS Professional, OpenPBS; time in seconds
    place=free
    [ "$alone" = 0 ] || place=excl
    chunk=1:ncpus=$threads:mem=${mem_mb}mb
    [ "$gpus" = 0 ] || chunk=$chunk:ngpus=$gpus
    qsub -V -N "dinoquant_$rule" -j oe -o logs/cluster -l "select=$chunk" -l "place=$place" \
        -l "walltime=$((minutes * 60))" "$script"
    ;;
*)
    echo "submit.sh: $system is none of lsf, sge, pbs" >&2
    exit 1
    ;;
esac
