"""How the result files that figures are drawn from are read, by kind."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dinoquant.files import read_json
from dinoquant.report.records import Peaks, read_timings

# Of one variant: "images" uint8 [N, 3, H, W], and "maps" float32 [N, heads, G, G] of attention or "patches" float32
# [N, patches, D]; or the "reason" why there are none.
Arrays = Mapping[str, NDArray[Any]]


def read_summary(path: str | Path) -> pd.DataFrame:
    """Return the summary table; names and reasons stay text, whatever they look like."""
    text = {"variant": str, "device": str, "status": str, "reason": str}
    return pd.read_csv(path, dtype=text, keep_default_na=False, na_values=[""])


def read_limits(path: str | Path) -> pd.DataFrame:
    """Return `results/limits.csv`; names stay text."""
    return pd.read_csv(path, dtype={"variant": str}, keep_default_na=False, na_values=[""])


def read_peaks(paths: Iterable[str | Path]) -> list[Peaks]:
    """Return what the machines can do at most, by device."""
    return [cast(Peaks, read_json(path)) for path in paths]


def read_audits(paths: Iterable[str | Path]) -> dict[str, pd.DataFrame]:
    """Return the audits, which lie in folders named after their variants."""
    return {Path(path).parent.name: pd.read_csv(path) for path in paths}


def read_arrays(paths: Iterable[str | Path]) -> dict[str, Arrays]:
    """Return attention maps or patch tokens, whose files are named after their variants."""
    return {Path(path).name.removesuffix(".npz"): dict(np.load(path)) for path in paths}


# By the kinds that `dinoquant.report.figures.catalogue` names: one file, or several.
READERS: Mapping[str, Callable[..., object]] = {
    "summary": read_summary,
    "limits": read_limits,
    "sensitivity": pd.read_csv,
    "latency": read_timings,
    "scaling": read_timings,
    "machines": read_peaks,
    "audits": read_audits,
    "attention": read_arrays,
    "patches": read_arrays,
}
