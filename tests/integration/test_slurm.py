"""examples/slurm.sh, with stand-ins for Slurm's commands: told of its time limit it saves, and goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.training import TRAIN, metrics

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {
    # runs the script on this machine, again as often as it is queued again
    "sbatch": """
export SLURM_JOB_ID=7 SLURM_JOB_NODELIST=node SLURM_JOB_NUM_NODES=1 SLURM_GPUS_ON_NODE=2 SLURM_SUBMIT_DIR=$PWD
while
    rm -f $STATE/queued
    bash "$@" & echo $! > $STATE/job
    wait $!; code=$?
    echo $code >> $STATE/codes
    [ -e $STATE/queued ]
do :; done
exit $code""",
    "srun": """[ "$1" = --kill-on-bad-exit=1 ] && echo $$ > $STATE/step && shift && exec "$@" """,
    "scancel": """[ "$*" = "--signal=TERM 7" ] && kill -TERM $(cat $STATE/step)""",
    "scontrol": """
if [ "$*" = "show hostnames node" ]; then echo localhost; echo other; fi
if [ "$*" = "requeue 7" ]; then touch $STATE/queued; fi""",
}


@pytest.mark.slow
def test_a_job_that_reaches_its_time_limit_saves_and_goes_on(shapes, tmp_path):
    for name, lines in COMMANDS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "STATE": str(tmp_path),
                   "VENV": sys.prefix, "OMP_NUM_THREADS": "1"}
    flags = ["--data", shapes, "--output", tmp_path / "run", *TRAIN, "--batch-size", 4, "--epochs", 5]
    with open(tmp_path / "log", "w") as log:
        job = subprocess.Popen(["sbatch", "examples/slurm.sh", *map(str, flags)], cwd=ROOT, env=environment,
                               stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "run" / "metrics.csv").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(int((tmp_path / "job").read_text()), signal.SIGTERM)
        assert job.wait(timeout=90) == 0, (tmp_path / "log").read_text()
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    said = (tmp_path / "log").read_text()
    assert "stopped by SIGTERM" in said and "done: " in said, said
    assert (tmp_path / "codes").read_text().split() == ["0", "0"], "queued again once"
    assert [int(row["epoch"]) for row in metrics(tmp_path / "run")] == list(range(1, 6))
    directives = [line.split()[1] for line in (ROOT / "examples" / "slurm.sh").read_text().splitlines()
                  if line.startswith("#SBATCH")]
    assert {"--signal=B:TERM@120", "--requeue", "--ntasks-per-node=1"} <= set(directives)
