"""docker/jobs/: valid by the validators of those who read them, and right about stopping, exit codes and ranks."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
JOBS = ROOT / "docker" / "jobs"
SCRIPTS = sorted(JOBS.glob("*.sbatch"))


def load(name: str) -> dict:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((JOBS / name).read_text(encoding="utf-8"))


# --- Kubernetes and dstack --------------------------------------------------------------------------------------------


def test_kubernetes_by_its_own_schema():
    validator = pytest.importorskip("kubernetes_validate", reason="not in this environment: run nox -s jobs")
    validator.validate(load("kubernetes.yaml"), validator.latest_version(), strict=True)


def test_kubernetes_never_retries_what_cannot_work_and_grants_time_to_save():
    job = load("kubernetes.yaml")["spec"]
    rules = {rule["action"]: rule for rule in job["podFailurePolicy"]["rules"]}
    assert rules["FailJob"]["onExitCodes"]["values"] == [2, 3]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert rules["FailJob"]["onExitCodes"]["containerName"] == container["name"]
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] == 900
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_dstack_by_its_own_parser():
    reason = "not in this environment: run nox -s jobs"
    configurations = pytest.importorskip("dstack._internal.core.models.configurations", reason=reason)
    task = configurations.parse_apply_configuration(load("dstack.yaml"))
    assert task.type == "task" and task.resources.gpu.name == ["P100"]


def test_targets_that_the_files_make_exist():
    targets = set(re.findall(r"^([a-z][a-z-]*):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    (command,) = load("dstack.yaml")["commands"]
    assert set(command.split()[1:]) <= targets


def test_kubernetes_sees_the_exit_code_of_the_stage():
    (container,) = load("kubernetes.yaml")["spec"]["template"]["spec"]["containers"]
    assert "args" not in container
    init, separator, python, *stage = container["command"]
    assert (init, separator) == ("tini", "--")  # `make`, the image's entry point, ends with 2 for every failure
    assert f"RECIPE_PYTHON={python} " in (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    assert subprocess.run([sys.executable, *stage], cwd=ROOT, capture_output=True).returncode == 2  # no such config
    assert subprocess.run([sys.executable, *stage[:2], "--help"], cwd=ROOT, capture_output=True).returncode == 0


# --- Slurm ------------------------------------------------------------------------------------------------------------

# A step that sleeps is told to stop by the file `stop`, as the processes are by the time limit.
SRUN = """#!/bin/bash
printf '%s\\n' "$@" >"$RECORD.srun"
while [ "${1#--}" != "$1" ]; do shift; done
for ((SLURM_PROCID = 0; SLURM_PROCID < SLURM_NTASKS; SLURM_PROCID++)); do
  export SLURM_PROCID SLURM_LOCALID=$((SLURM_PROCID % (SLURM_NTASKS / SLURM_NNODES)))
  "$@" || code=$?
done
exit "${code:-0}"
"""
PYTHON = """#!/bin/bash
echo "$RANK/$WORLD_SIZE $LOCAL_RANK/$LOCAL_WORLD_SIZE $MASTER_ADDR:$MASTER_PORT $*" >>"$RECORD"
trap 'exit 130' TERM
if [ -n "${STEP:-}" ]; then sleep "$STEP"; fi
exit "$CODE"
"""
SCONTROL = """#!/bin/bash
case $1 in show) printf 'node1\\nnode2\\n' ;; *) echo "$*" >>"$RECORD.scontrol" ;; esac
"""


@pytest.fixture
def cluster(tmp_path):
    """Programs that stand in for srun, scontrol and Python."""
    for name, text in (("srun", SRUN), ("python", PYTHON), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def environment(cluster: Path, **changes: str) -> dict[str, str]:
    slurm = {"SLURM_JOB_ID": "41234", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NTASKS": "4", "SLURM_NNODES": "2"}
    given = {"PATH": f"{cluster}:{os.environ['PATH']}", "RECORD": str(cluster / "record"), "CODE": "0"}
    return given | slurm | {"RECIPE_PYTHON": str(cluster / "python"), "CONFIG": "my config.toml"} | changes


def train(cluster: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    given = environment(cluster, **changes)
    return subprocess.run(["bash", JOBS / "train.sbatch"], env=given, capture_output=True, text=True, timeout=60)


def test_each_process_knows_its_place(cluster):
    assert train(cluster).returncode == 0
    lines = (cluster / "record").read_text().splitlines()
    call = "node1:21234 -m recipe.train --config=my config.toml"
    assert lines == [f"{rank}/4 {rank % 2}/2 {call}" for rank in range(4)]
    assert not (cluster / "record.scontrol").exists()


@pytest.mark.parametrize(("code", "again"), [(0, False), (1, False), (2, False), (3, False), (130, True)])
def test_only_what_stopped_with_a_checkpoint_goes_back_into_the_queue(cluster, code, again):
    assert train(cluster, CODE=str(code)).returncode == code
    assert (cluster / "record.scontrol").exists() == again
    if again:
        assert (cluster / "record.scontrol").read_text() == "requeue 41234\n"


def test_a_cancelled_job_does_not_come_back(cluster):
    """scancel signals the script and its processes; here the script waits for them to save, then ends."""
    given = environment(cluster, STEP="1", CODE="130", SLURM_NTASKS="1", SLURM_NNODES="1")
    job = subprocess.Popen(["bash", JOBS / "train.sbatch"], env=given)
    deadline = time.monotonic() + 20
    while not (cluster / "record").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=30) == 130
    assert not (cluster / "record.scontrol").exists()


def test_an_array_task_prepares_the_corpus_of_its_line(cluster):
    (cluster / "configs.txt").write_text("one.toml\ntwo words.toml\n")
    command = ["bash", JOBS / "corpus.sbatch", cluster / "configs.txt"]
    given = environment(cluster, SLURM_ARRAY_TASK_ID="2", SLURM_CPUS_PER_TASK="6", SLURM_NTASKS="1", SLURM_NNODES="1")
    assert subprocess.run(command, env=given).returncode == 0
    flags = (cluster / "record.srun").read_text().splitlines()[1:]
    assert flags == ["-m", "recipe.corpus", "--config=two words.toml", "--set", "corpus.processes=6"]
    done = subprocess.run(command, env={**given, "SLURM_ARRAY_TASK_ID": "3"}, capture_output=True, text=True)
    assert done.returncode == 2 and "has no line 3" in done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_ask_only_for_what_slurm_has(script):
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    text = script.read_text(encoding="utf-8")
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", text, re.M))
    assert len(options) == text.count("\n#SBATCH"), "every directive is --name or --name=value"
    known = {
        "job-name",
        "nodes",
        "ntasks",
        "ntasks-per-node",
        "gpus-per-node",
        "cpus-per-task",
        "mem",
        "time",
        "signal",
    }
    assert options.keys() <= known | {"requeue", "open-mode", "output"}
    assert "requeue" in options and options["open-mode"] == "append"
    assert text.rindex("#SBATCH") < text.index("set -"), "sbatch reads no directive after the first command"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_by_shellcheck(script):
    if not (program := shutil.which("shellcheck")):
        pytest.skip("not in this environment: run nox -s jobs")
    done = subprocess.run([program, "--shell=bash", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
