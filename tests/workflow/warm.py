"""Run Snakemake in forks of a process that has imported it already: half of what a dry run takes is the imports."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

LONGEST_SECONDS = 400


class WarmSnakemake:
    """Snakemake as its command line has it, one call at a time."""

    def __init__(self) -> None:
        # -P: Snakemake must not find the tests' modules, and takes the library from the checkout that it runs in.
        command = [sys.executable, "-P", __file__]
        self.server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, *arguments: str, folder: Path, output: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """Run it in a folder, with `env` added to the environment; stdout and stderr go to a file, and are returned."""
        request = {"arguments": arguments, "folder": str(folder), "output": str(output), "env": {**os.environ, **env}}
        assert self.server.stdin
        assert self.server.stdout
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        status = int(self.server.stdout.readline())
        if status == -signal.SIGALRM:
            raise subprocess.TimeoutExpired(list(arguments), LONGEST_SECONDS, output.read_text())
        return subprocess.CompletedProcess(list(arguments), status, output.read_text())

    def close(self) -> None:
        """End the process."""
        self.server.communicate()


def serve() -> None:
    """Answer each request, a line of JSON, with the exit status of a Snakemake that was run for it."""
    # What Snakemake and the Snakefile import only later on.
    import jsonschema  # noqa: F401
    import nbformat  # noqa: F401
    import smart_open  # noqa: F401
    from snakemake.cli import get_argument_parser, main

    get_argument_parser()  # imports the plugins
    while line := sys.stdin.readline():
        pid = os.fork()
        if pid == 0:
            request = json.loads(line)
            signal.alarm(LONGEST_SECONDS)
            os.chdir(request["folder"])
            os.environ.clear()
            os.environ.update(request["env"])
            output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, sys.stdout.fileno())
            os.dup2(output, sys.stderr.fileno())
            os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())
            sys.path.insert(0, "")  # as `python -m snakemake` has it
            main(request["arguments"])
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve()
