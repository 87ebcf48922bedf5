"""Jobs that meet what a cluster has in store for them; those that fail do so in their first attempt only."""


rule troubles:
    input:
        "gpu.txt",
        "memory.txt",
        "time.txt",


rule gpu:
    output:
        "gpu.txt",
    resources:
        gpu=1,
    shell:
        "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES > {output}"


# Takes 700 MB for longer than Slurm needs to see it.
rule over_its_memory:
    output:
        "memory.txt",
    resources:
        mem_mb=lambda wildcards, attempt: 600 * attempt,
    shell:
        "python3 -c 'import time; block = bytearray(700_000_000); time.sleep(6)' && echo done > {output}"


# A minute is the shortest limit that Slurm knows.
rule over_its_time:
    output:
        "time.txt",
    resources:
        runtime=lambda wildcards, attempt: attempt,
        nap=lambda wildcards, attempt: 300 if attempt == 1 else 0,
    shell:
        "sleep {resources.nap} && echo done > {output}"


# Goes to a node that the test takes away; the second attempt may run anywhere.
rule loses_its_node:
    output:
        "node.txt",
    resources:
        constraint=lambda wildcards, attempt: "plain" if attempt == 1 else "plain|accelerated",
        nap=lambda wildcards, attempt: 300 if attempt == 1 else 0,
    shell:
        "echo half > {output} && sleep {resources.nap} && echo $SLURMD_NODENAME > {output}"


rule endless:
    output:
        "endless.txt",
    params:
        pid="endless.pid",
    shell:
        "echo $$ > {params.pid} && exec sleep 600"
