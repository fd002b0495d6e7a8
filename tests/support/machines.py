"""Two machines as network namespaces of Linux, joined by one cable."""

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ADDRESSES = ("10.213.7.1", "10.213.7.2")


class Machine(NamedTuple):
    """A network namespace. Its network card is called `cable`."""

    namespace: str
    address: str

    def run(self, *command: str) -> None:
        """Run a command in it."""
        subprocess.run(["ip", "netns", "exec", self.namespace, *command], check=True, capture_output=True)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start Python in it."""
        # Gloo would look for the address of the name of the host, which only the real machine has.
        environment = os.environ | {"GLOO_SOCKET_IFNAME": "cable", "OMP_NUM_THREADS": "1"}
        command = ["ip", "netns", "exec", self.namespace, sys.executable, *arguments]
        return subprocess.Popen(command, env=environment, text=True, **options)


@contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Set up two machines, and remove them on exit.

    Raises:
        PermissionError: If this process may not make network namespaces, or there is no `ip`.
    """
    name = f"deformdetr-{secrets.token_hex(4)}"
    machines = Machine(f"{name}-0", ADDRESSES[0]), Machine(f"{name}-1", ADDRESSES[1])
    try:
        for machine in machines:
            _ip("netns", "add", machine.namespace)
    except (OSError, subprocess.CalledProcessError) as error:
        raise PermissionError("network namespaces cannot be made here") from error
    try:
        ends = [("name", "cable", "netns", machine.namespace) for machine in machines]
        _ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for machine in machines:
            machine.run("ip", "address", "add", f"{machine.address}/24", "dev", "cable")
            machine.run("ip", "link", "set", "cable", "up")
            machine.run("ip", "link", "set", "lo", "up")
        yield machines
    finally:
        for machine in machines:
            _ip("netns", "delete", machine.namespace)


def start_training(
    machines: Sequence[Machine], arguments: Sequence[str], *, logs: Path, max_restarts: int = 0
) -> list[subprocess.Popen[str]]:
    """Start `deformdetr train` by one `torchrun` on each machine, with one process each."""
    launch = ["-m", "torch.distributed.run", "--nnodes", str(len(machines)), "--nproc-per-node", "1"]
    launch += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{machines[0].address}:29400", "--rdzv-id", "training"]
    launch += ["--max-restarts", str(max_restarts)]
    started = []
    for number, machine in enumerate(machines):
        with (logs / f"machine{number}.log").open("w") as file:
            # Otherwise torchrun would compare the address with those of the real machine's name.
            own = ["--rdzv-conf", f"is_host={int(number == 0)}", "--local-addr", machine.address]
            command = [*launch, *own, "-m", "deformdetr", "train", *arguments]
            started.append(machine.start(*command, stdout=file, stderr=subprocess.STDOUT))
    return started


def workers_of(launcher: subprocess.Popen[str]) -> list[int]:
    """Return the process numbers of what `torchrun` has started."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    return [int(number) for number in children.read_text().split()]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
