"""Many workers and many variants: shards, devices of other machines, sweeps."""

from pathlib import Path

from checkout import Checkout

FEATURES = "results/features/int8-static.npz"


def test_two_shards_give_the_same_file(finished: Checkout, run: Checkout) -> None:
    (run.folder / FEATURES).unlink()
    done = run.snakemake(FEATURES, overlay={"accuracy": {"shards": 2}})
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("rule extract_shard:") == 2
    assert (run.folder / FEATURES).read_bytes() == (finished.folder / FEATURES).read_bytes()
    assert not list(Path(run.folder / FEATURES).with_suffix("").glob("*"))  # the parts are gone
    assert set(run.stale(FEATURES, overlay={"accuracy": {"shards": 2}})) == set()


def test_a_cluster_may_have_devices_that_the_head_node_lacks(fresh: Checkout) -> None:
    done = fresh.snakemake("--dry-run", "--executor", "slurm", "--jobs", "2", overlay={"devices": ["cpu", "cuda"]})
    assert done.returncode == 0, done.stdout
    assert "results/latency/cuda/fp32/batch1.json" in done.stdout
