"""Training on two machines by torchrun, as SLURM and Kubernetes start it, equals that on one machine to the bit.

A machine is a network namespace with its own host name, connected by a virtual Ethernet pair. Where namespaces are not
allowed, both machines are this one.
"""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import tomli_w
import torch
import yaml
from safetensors.torch import load_file

from ifkd.compute.distributed import process_group
from ifkd.core.errors import TrainingError

CLUSTERS = Path(__file__).parents[2] / "configs" / "clusters"
COMMAND = ("train", "tiny.toml", "student.training.epochs=8", "student.training.save_every_minutes=0")
LONGEST_S = 240


@dataclass(frozen=True)
class Machine:
    """A host that runs processes."""

    name: str
    prefix: tuple[str, ...]
    """First words of a command that runs on it."""


@contextmanager
def two_machines(first: str, second: str) -> Iterator[tuple[Machine, Machine]]:
    """Create two machines that resolve each other's names, also in the domain `ifkd`."""
    spaces = [f"ifkd{os.getpid()}{letter}" for letter in "ab"]
    addresses = {first: "10.77.0.1", second: "10.77.0.2"}
    hosts = "127.0.0.1 localhost\n" + "".join(f"{one} {name}.ifkd {name}\n" for name, one in addresses.items())

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    with ExitStack() as stack:
        for space in spaces:
            ip("netns", "add", space)
            stack.callback(ip, "netns", "del", space)
            own = Path("/etc/netns") / space
            own.mkdir(parents=True)
            stack.callback(shutil.rmtree, own)
            (own / "hosts").write_text(hosts)
            ip("-n", space, "link", "set", "lo", "up")
        ip("link", "add", "cable", "netns", spaces[0], "type", "veth", "peer", "name", "cable", "netns", spaces[1])
        for space, address in zip(spaces, addresses.values(), strict=True):
            ip("-n", space, "addr", "add", f"{address}/24", "dev", "cable")
            ip("-n", space, "link", "set", "cable", "up")
        named = ("unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"')
        one, other = (
            Machine(name, ("ip", "netns", "exec", space, *named, name))
            for space, name in zip(spaces, addresses, strict=True)
        )
        yield one, other


def machines_unavailable() -> str | None:
    """Return the reason why namespaces are not available, or None."""
    if shutil.which("ip") is None or shutil.which("unshare") is None:
        return "there is no `ip` and `unshare`"
    try:
        with two_machines("a", "b") as (one, _):
            done = subprocess.run([*one.prefix, "true"], capture_output=True, check=False)
    except (subprocess.CalledProcessError, OSError) as error:
        return f"network namespaces cannot be created ({error})"
    return None if done.returncode == 0 else f"they cannot be entered ({done.stderr.decode().strip()})"


@pytest.fixture(scope="module")
def no_machines() -> str | None:
    return machines_unavailable()


@pytest.fixture
def machines(no_machines: str | None) -> Iterator[tuple[Machine, Machine]]:
    """Two machines, or this machine twice."""
    if no_machines is None:
        with two_machines("ifkd-0", "ifkd-1") as both:
            yield both
    else:
        yield Machine("localhost", ()), Machine("localhost", ())


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory, make_recipe: Callable[..., dict[str, Any]]) -> Path:
    """A folder with data and a recipe, and `torchrun` beside them."""
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "tiny.toml").write_text(tomli_w.dumps(make_recipe(folder)), encoding="utf-8")
    program = folder / "bin" / "torchrun"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m torch.distributed.run "$@"\n')
    program.chmod(0o755)
    return folder


def environment(setup: Path, **variables: str) -> dict[str, str]:
    packages = str(Path(__file__).parents[2])
    path = f"{setup / 'bin'}{os.pathsep}{os.environ['PATH']}"
    variables = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", **variables}
    return {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path, "PYTHONPATH": packages, **variables}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "last.safetensors")


def assert_equal(folder: Path, expected: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {path.name for path in expected.iterdir()}
    found, wanted = weights(folder), weights(expected)
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name
    steps = [[line.get("iteration") for line in entries(one)] for one in (folder, expected)]
    assert steps[0] == steps[1]


def entries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def lines(folder: Path) -> int:
    """Return the number of lines in a run's metrics.jsonl."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def wait_for_lines(folder: Path, count: int, launcher: "subprocess.Popen[str]") -> None:
    """Wait until a run has logged `count` lines and saved a state."""
    deadline = time.monotonic() + LONGEST_S
    while not ((folder / "state.pt").is_file() and lines(folder) >= count):
        assert launcher.poll() is None
        assert time.monotonic() < deadline, "the run is stuck"
        time.sleep(0.02)


@contextmanager
def started(command: Sequence[str], setup: Path, **variables: str) -> Iterator["subprocess.Popen[str]"]:
    """Start a launcher, and kill it and its children at the end of the block."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=setup, env=environment(setup, **variables), **quiet) as running:
        try:
            yield running
        finally:
            if running.poll() is None:
                processes = [*psutil.Process(running.pid).children(recursive=True), psutil.Process(running.pid)]
                for process in processes:
                    process.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def uninterrupted(setup: Path) -> Path:
    """The run of two processes on one machine."""
    done = subprocess.run(
        ["torchrun", "--standalone", "--nproc-per-node", "2", "-m", "ifkd", *COMMAND, "--out", "uninterrupted"],
        cwd=setup,
        env=environment(setup),
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return setup / "uninterrupted"


# --- elastic restarts ----------------------------------------------------------------------------------------------


def worker(launcher: psutil.Process, rank: int) -> psutil.Process:
    """Return the process of a rank."""
    (found,) = [process for process in launcher.children() if process.environ().get("RANK") == str(rank)]
    return found


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_the_weights_are_those_of_an_uninterrupted_run(
    setup: Path, uninterrupted: Path
) -> None:
    """SIGKILL of rank 0, which writes."""
    folder = setup / "elastic"
    command = ["torchrun", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1", "-m", "ifkd", *COMMAND]
    with started([*command, "--out", "elastic"], setup) as running:
        wait_for_lines(folder, 3, running)
        victim = worker(psutil.Process(running.pid), 0)
        victim.send_signal(signal.SIGKILL)
        assert not (folder / "result.json").exists()
        _, errors = running.communicate(timeout=LONGEST_S)
    assert running.returncode == 0, errors
    assert re.search(rf"exitcode: -9\).*\(pid: {victim.pid}\)", errors), errors
    assert_equal(folder, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False])
def test_restarts_with_a_shared_store_are_refused_before_the_first_step(
    setup: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """With a shared store, the new processes would wait for the killed ones. torchrun sets the variables."""
    command = ["torchrun", "--standalone", "--nproc-per-node", "1", "--max-restarts", "1", "--no-python", "env"]
    variables = environment(setup, TORCH_DISABLE_SHARE_RDZV_TCP_STORE=str(int(not shared)))
    output = subprocess.run(
        command, env=variables, capture_output=True, text=True, timeout=LONGEST_S, check=True
    ).stdout
    for name, value in re.findall(r"^(TORCHELASTIC_\w+)=(.*)$", output, flags=re.MULTILINE):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WORLD_SIZE", "2")
    joined = pytest.raises(ReachedRendezvous)
    if shared:
        joined = pytest.raises(TrainingError, match="Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun")
    monkeypatch.setattr("torch.distributed.init_process_group", ReachedRendezvous.now)
    with joined, process_group():
        pass


class ReachedRendezvous(Exception):  # noqa: N818 - not an error
    """Raised instead of joining the process group."""

    @classmethod
    def now(cls, *_: Any) -> None:
        raise cls


# --- SLURM -----------------------------------------------------------------------------------------------------------

SRUN = """#!{python}
# Starts a command once on each machine, as srun does with one task a node.
import json, os, subprocess, sys
words = sys.argv[1:]
while words[0].startswith("-"):
    words.pop(0)
running = [
    subprocess.Popen([*prefix, *words], env={{**os.environ, "SLURM_PROCID": str(node), "SLURM_NODEID": str(node)}})
    for node, prefix in enumerate(json.loads(os.environ["MACHINES"]))
]
sys.exit(max(one.wait() for one in running))
"""
SCONTROL = """#!/bin/sh
[ "$1 $2" = "show hostnames" ] && echo "$3" | tr , '\\n'
"""


def test_the_slurm_script_is_valid() -> None:
    text = (CLUSTERS / "slurm.sh").read_text()
    subprocess.run(["bash", "-n", str(CLUSTERS / "slurm.sh")], check=True)
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?", text, flags=re.MULTILINE))
    assert options["ntasks-per-node"] == "1"
    assert "requeue" in options
    assert text.index("#SBATCH") < text.index("set -euo pipefail"), "sbatch reads options before the first command only"


@pytest.mark.slow
def test_the_slurm_script_trains_on_two_machines_as_on_one(
    setup: Path, uninterrupted: Path, machines: tuple[Machine, Machine]
) -> None:
    for name, text in (("srun", SRUN.format(python=sys.executable)), ("scontrol", SCONTROL)):
        (setup / "bin" / name).write_text(text)
        (setup / "bin" / name).chmod(0o755)
    variables = {
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": ",".join(machine.name for machine in machines),
        "RENDEZVOUS_PORT": str(free_port()),
        "PROCESSES": "1",
        "MACHINES": json.dumps([machine.prefix for machine in machines]),
    }
    done = subprocess.run(
        [str(CLUSTERS / "slurm.sh"), *COMMAND, "--out", "slurm"],
        cwd=setup,
        env=environment(setup, **variables),
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert_equal(setup / "slurm", uninterrupted)


# --- Kubernetes ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def manifests() -> dict[str, dict[str, Any]]:
    """The objects of the template, by kind."""
    return {one["kind"]: one for one in yaml.safe_load_all((CLUSTERS / "kubernetes.yaml").read_text("utf-8"))}


def test_the_job_is_indexed_and_its_service_names_its_pods(manifests: dict[str, dict[str, Any]]) -> None:
    service, job = manifests["Service"], manifests["Job"]
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"], "all pods run at once"
    pod = spec["template"]["spec"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"], "pods connect before they are ready"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert pod["restartPolicy"] == "OnFailure"


def test_the_rendezvous_is_at_the_first_pod_and_a_pods_address_comes_from_its_index(
    manifests: dict[str, dict[str, Any]],
) -> None:
    """The name of a pod of an Indexed Job is the Job's with the index, in the domain of the Service."""
    job, service = manifests["Job"]["metadata"]["name"], manifests["Service"]["metadata"]["name"]
    (port,) = [one["port"] for one in manifests["Service"]["spec"]["ports"]]
    (container,) = manifests["Job"]["spec"]["template"]["spec"]["containers"]
    options = dict(
        word.lstrip("-").split("=", 1) for word in container["args"] if word.startswith("--") and "=" in word
    )
    assert container["command"] == ["torchrun"]
    assert options["rdzv-endpoint"] == f"{job}-0.{service}:{port}"
    assert options["local-addr"] == f"{job}-$(JOB_COMPLETION_INDEX).{service}"
    given = {one["name"]: one["value"] for one in container["env"]}
    assert options["nnodes"] == "$(NODES)"
    assert int(given["NODES"]) == manifests["Job"]["spec"]["completions"]
    mounted = {one["name"] for one in container["volumeMounts"]}
    assert mounted == {one["name"] for one in manifests["Job"]["spec"]["template"]["spec"]["volumes"]}


def expand(arguments: list[str], variables: dict[str, str]) -> list[str]:
    """Replace `$(NAME)` in arguments, as the kubelet does."""
    return [re.sub(r"\$\((\w+)\)", lambda found: variables[found[1]], word) for word in arguments]


@pytest.mark.slow
def test_the_jobs_command_trains_on_two_machines_and_survives_the_loss_of_a_pod(
    setup: Path,
    uninterrupted: Path,
    machines: tuple[Machine, Machine],
    manifests: dict[str, dict[str, Any]],
) -> None:
    """The second pod is killed and started again, as the kubelet does; the weights are those of one machine."""
    (container,) = manifests["Job"]["spec"]["template"]["spec"]["containers"]
    given = {one["name"]: one["value"] for one in container["env"]} | {"PROCESSES": "1"}
    launch = [*container["command"], *container["args"][: container["args"].index("ifkd") + 1]]
    if machines[0].name == "localhost":  # pod names do not resolve
        port = free_port()
        launch = [re.sub(r"ifkd-(0|\$\(\w+\))\.ifkd", "localhost", word).replace("29500", f"{port}") for word in launch]
    folder = setup / "kubernetes"

    def pod(index: int) -> AbstractContextManager["subprocess.Popen[str]"]:
        variables = {**given, "JOB_COMPLETION_INDEX": str(index)}
        command = [*machines[index].prefix, *expand(launch, variables), *COMMAND, "--out", folder.name]
        return started(command, setup, **variables)

    with pod(0) as first:
        with pod(1) as second:
            wait_for_lines(folder, 3, first)
            assert second.poll() is None
        assert not (folder / "result.json").exists()
        with pod(1) as second:
            ends = [one.communicate(timeout=LONGEST_S)[1] for one in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), "\n".join(ends)
    assert_equal(folder, uninterrupted)


@pytest.mark.slow
def test_the_machines_were_two(no_machines: str | None) -> None:
    """Skipped where the tests above ran on one host."""
    if no_machines is not None:
        pytest.skip(f"both machines were this one: {no_machines}")
    with two_machines("ifkd-0", "ifkd-1") as both:
        names = [
            subprocess.run([*one.prefix, "hostname"], capture_output=True, text=True, check=True).stdout.strip()
            for one in both
        ]
    assert names == ["ifkd-0", "ifkd-1"]
