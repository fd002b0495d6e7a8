"""Two machines as network namespaces of Linux, joined by one cable."""

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import slow_training

ADDRESSES = ("10.213.7.1", "10.213.7.2")


class Machine(NamedTuple):
    """A network namespace. Its network card is called `cable`."""

    namespace: str
    address: str

    def run(self, *command: str) -> str:
        """Run a command in it, and return its output."""
        command = ("ip", "netns", "exec", self.namespace, *command)
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def drop_packets(self, share: float) -> None:
        """Lose this share of the packets that it sends, at random."""
        # A program of BPF, because netem is missing in many kernels: drop if a random number of 32 bits is small.
        program = f"4,32 0 0 {2**32 - 4096 + 56},53 1 0 {int(share * 2**32)},6 0 0 2,6 0 0 {2**32 - 1}"
        self.run("tc", "qdisc", "add", "dev", "cable", "clsact")
        self.run("tc", "filter", "add", "dev", "cable", "egress", "bpf", "direct-action", "bytecode", program)

    def dropped_packets(self) -> tuple[int, int]:
        """Return how many packets it has lost, and how many it would have sent."""
        said = self.run("tc", "-s", "qdisc", "show", "dev", "cable", "clsact")
        sent, dropped = re.findall(r"(\d+) pkt \(dropped (\d+)", said)[0]
        return int(dropped), int(sent)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start Python in it."""
        # Gloo would look for the address of the name of the host, which only the real machine has.
        # Restarted processes would find addresses of those before them in a shared store.
        environment = os.environ | {
            "GLOO_SOCKET_IFNAME": "cable",
            "OMP_NUM_THREADS": "1",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        }
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
    machines: Sequence[Machine], config: Path, run: Path, *, max_restarts: int
) -> list[subprocess.Popen[str]]:
    """Start `deformdetr train --resume` by one `torchrun` on each machine, with one process each, the second one slow.

    What they write goes to `machine0.log` and `machine1.log` beside the run.
    """
    launch = ["-m", "torch.distributed.run", "--nnodes", str(len(machines)), "--nproc-per-node", "1"]
    launch += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{machines[0].address}:29400", "--rdzv-id", "training"]
    launch += ["--max-restarts", str(max_restarts)]
    started = []
    for number, machine in enumerate(machines):
        with run.with_name(f"machine{number}.log").open("w") as file:
            # Otherwise torchrun would compare the address with those of the real machine's name.
            own = ["--rdzv-conf", f"is_host={int(number == 0)}", "--local-addr", machine.address]
            training = [slow_training.__file__, "train", str(config), "--output", str(run), "--resume"]
            started.append(machine.start(*launch, *own, *training, stdout=file, stderr=subprocess.STDOUT))
    return started


def workers_of(launcher: subprocess.Popen[str]) -> list[int]:
    """Return the process numbers of what `torchrun` has started."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    return [int(number) for number in children.read_text().split()]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
