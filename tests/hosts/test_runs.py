"""Real processes that train and evaluate together, each with two simulated devices."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from rpn_jax.config import save_config
from rpn_jax.weights.torch import to_torch

ROOT = Path(__file__).resolve().parents[2]
PEER_TIMEOUT = 10
SECONDS_TO_END = PEER_TIMEOUT + 10
SECONDS_TO_START = 240
"""Much more than a start takes, for machines that do other work too."""


def start(arguments, devices, log):
    program = "import sys; from rpn_jax.cli import main; sys.exit(main())"
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    with log.open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments), "--platform", "cpu"],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def free_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def start_two(arguments, folder, only_process_1=()):
    """Start two processes with two devices each. Return them and their logs.

    Args:
      arguments: arguments of both processes.
      folder: folder of the logs.
      only_process_1: more arguments of process 1.
    """
    coordinator = free_address()
    logs = [folder / "process0.log", folder / "process1.log"]
    hosts = ["--coordinator", coordinator, "--process-count", 2, "--peer-timeout", PEER_TIMEOUT]
    processes = [
        start([*arguments, *hosts, "--process-id", number, *more], 2, log)
        for number, (log, more) in enumerate(zip(logs, ((), only_process_1), strict=True))
    ]
    return processes, logs


def finished(processes, logs, seconds):
    """Wait for all processes and return their exit codes. None stands for one that did not end."""
    end = time.monotonic() + seconds
    try:
        return [process.wait(max(end - time.monotonic(), 0.1)) for process in processes]
    except subprocess.TimeoutExpired:
        pytest.fail("\n".join(log.read_text() for log in logs))
    finally:
        for process in processes:
            process.kill()


def wait_for(text, log, process):
    end = time.monotonic() + SECONDS_TO_START
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)


def metrics(workdir, name):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row[name] for row in rows if name in row}


@pytest.fixture(scope="module")
def config_file(tiny_config, tmp_path_factory):
    data = replace(tiny_config.data, batch_size=4)
    train = replace(tiny_config.train, eval_every=2)
    file = tmp_path_factory.mktemp("config") / "tiny.json"
    save_config(replace(tiny_config, data=data, train=train), file)
    return file


@pytest.fixture(scope="module")
def one_process(config_file, tmp_path_factory):
    """The work directory of a finished run of one process with four devices, and its log."""
    folder = tmp_path_factory.mktemp("one")
    log = folder / "log"
    process = start(["train", config_file, "--workdir", folder / "run"], 4, log)
    assert finished([process], [log], SECONDS_TO_START) == [0], log.read_text()
    return folder / "run", log


@pytest.fixture(scope="module")
def killed(config_file, tmp_path_factory):
    """The work directory of two processes after the second was killed, and what they left."""
    folder = tmp_path_factory.mktemp("two")
    many_epochs = ["--train.epochs", 1000, "--train.eval-every", 0]
    arguments = ["train", config_file, "--workdir", folder / "run", *many_epochs]
    processes, logs = start_two(arguments, folder)
    wait_for("step 6/", logs[0], processes[0])
    killed_at = time.monotonic()
    processes[1].kill()
    codes = finished(processes, logs, SECONDS_TO_START)
    return folder / "run", codes, time.monotonic() - killed_at, logs


def test_two_processes_train_as_one_with_all_devices(one_process, killed):
    expected = {step: metrics(one_process[0], "loss")[step] for step in range(1, 5)}
    together = metrics(killed[0], "loss")
    assert {step: together[step] for step in expected} == pytest.approx(expected, rel=1e-5)
    assert len(set(expected.values())) == 4


def test_only_process_0_prints_the_run(killed):
    *_, logs = killed
    assert "compiling the training step" in logs[0].read_text()
    assert "compiling" not in logs[1].read_text()
    for number, log in enumerate(logs):
        waits = f"process {number} of 2: waits up to 60 s for the others at 127.0.0.1:"
        assert waits in log.read_text()
        assert f"process {number} of 2: has 2 of 4 devices" in log.read_text()


def test_a_lost_process_ends_the_other_with_one_line(killed):
    _, codes, seconds, logs = killed
    assert codes == [3, -9]
    assert seconds < SECONDS_TO_END
    text = logs[0].read_text()
    assert text.splitlines()[-1].startswith("error: process 1 was lost: it ended, or")
    assert "Traceback" not in text


def test_a_lost_process_0_ends_the_other(tmp_path):
    """Process 0 runs the service of `jax.distributed`, whose loss makes JAX end the others too.

    A thread of JAX can see the loss a moment earlier and write a line to its log.
    """
    coordinator = free_address()
    logs = [tmp_path / "process0.log", tmp_path / "process1.log"]
    processes = []
    for number, log in enumerate(logs):
        with log.open("w") as output:
            command = [sys.executable, "-m", "tests.hosts.idle_process", coordinator, str(number)]
            processes.append(
                subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
            )
    wait_for("idle", logs[1], processes[1])
    wait_for("idle", logs[0], processes[0])
    processes[0].kill()
    assert finished(processes, logs, SECONDS_TO_END) == [-9, 3], logs[1].read_text()
    *others, last = logs[1].read_text().partition("idle\n")[2].splitlines()
    assert last.startswith("error: process 0 was lost: it ended, or its host does not answer.")
    assert not others or "coordination_service_agent.cc" in others[0], others


def test_processes_with_other_settings_are_refused(config_file, tmp_path):
    arguments = ["train", config_file, "--workdir", tmp_path / "run"]
    processes, logs = start_two(arguments, tmp_path, ["--optim.learning-rate", 0.5])
    assert finished(processes, logs, SECONDS_TO_START) == [2, 2]
    for log in logs:
        assert (
            "error: optim.learning_rate = 0.5: in process 1, but 0.01 in process 0. Give all "
            "processes the same config and flags.\n"
        ) in log.read_text()
    assert not (tmp_path / "run").exists()


def test_a_killed_run_continues_in_one_process(config_file, killed, tmp_path):
    workdir = killed[0]
    last = max(
        int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()
    )
    epochs = last // 2 + 1
    arguments = ["--workdir", workdir, "--train.epochs", epochs, "--train.eval-every", 0]
    log = tmp_path / "log"
    process = start(["train", config_file, *arguments, "--resume"], 4, log)
    assert finished([process], [log], SECONDS_TO_START) == [0], log.read_text()
    text = log.read_text()
    assert "the run had 4 devices in 2 processes until now. It has 4 in 1 from here on" in text
    assert f"continuing after step {last}" in text
    assert max(metrics(workdir, "loss")) == 2 * epochs


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_two_processes_evaluate_as_one(one_process, config_file, tmp_path, monkeypatch, kind):
    workdir, _ = one_process
    figures = tmp_path / "figures.json"
    if kind == "folder":
        arguments = ["evaluate", "--weights", workdir, "--out", figures]
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        to_torch(workdir, tmp_path / "w.pth")
        weights = ["--weights", tmp_path / "w.pth"]
        arguments = ["evaluate", config_file, *weights, "--out", figures]
    processes, logs = start_two(arguments, tmp_path)
    codes = finished(processes, logs, SECONDS_TO_START)
    assert codes == [0, 0], "\n".join(log.read_text() for log in logs)
    found = json.loads(figures.read_text())["figures"]
    expected = {name: metrics(workdir, name)[4] for name in found}
    assert found == pytest.approx(expected, nan_ok=True)
    assert re.search("AR@1000 .*│ +0", logs[0].read_text())
    assert "AR@1000" not in logs[1].read_text()
