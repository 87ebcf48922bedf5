"""Make a virtual environment from hash-pinned locks and show that it is alive: pip is silent for minutes, or a flood.

usage: python3 envs/install.py FOLDER LOCK...
"""

import re
import subprocess
import sys
import time
from pathlib import Path

PINNED = re.compile(r"^[A-Za-z0-9_.-]+(\[.*\])?==", re.MULTILINE)
STEP = re.compile(r"^(Collecting|Installing collected packages)[: ]*([A-Za-z0-9_.-]*)")
PLAIN_SECONDS = 20  # between two lines where the output is no terminal


def install(folder: Path, locks: list[str]) -> int:
    """Return pip's exit status; its output is printed where it fails."""
    packages = len({match[0] for lock in locks for match in PINNED.finditer(Path(lock).read_text())})
    print(f"{folder}: {packages} packages by the locks {', '.join(locks)}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    command = [str(folder / "bin/pip"), "install", "--require-hashes", "--disable-pip-version-check"]
    command += [argument for lock in locks for argument in ("-r", lock)]
    output, collected, started, shown = [], 0, time.monotonic(), 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        for line in pip.stdout:
            output.append(line)
            if not (step := STEP.match(line)):
                continue
            collected += step[1] == "Collecting"
            elapsed = time.monotonic() - started
            what = f"fetching {collected} of {packages}: {step[2]}" if step[1] == "Collecting" else "unpacking all"
            if sys.stdout.isatty():
                print(f"\r\033[K{elapsed:4.0f} s  {what}", end="", flush=True)
            elif elapsed - shown > PLAIN_SECONDS or step[1] != "Collecting":
                shown = elapsed
                print(f"{elapsed:4.0f} s  {what}", flush=True)
    megabytes = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    end = f"{time.monotonic() - started:4.0f} s, {megabytes / 1000:.1f} GB in {folder}"
    print("\r\033[K" * sys.stdout.isatty() + (end if pip.returncode == 0 else "".join(output[-30:])), flush=True)
    return pip.returncode


if __name__ == "__main__":
    sys.exit(install(Path(sys.argv[1]), sys.argv[2:]))
