"""Hosts of a network of their own on this machine, as `ray up` finds a rack: SSH and no more.

Each is a set of Linux namespaces (network, processes, mounts, name) with its own address, home
folder, /tmp/ray and Debian's sshd; all share this machine's cores and other files, as hosts share
a network file system. They know one another's names, and no name server. Needs root and Debian's
openssh-server, rsync and iproute2. The cluster is deploy/clusters/local.yaml with its addresses
and its key; only where the packages come from is changed: the wheel is installed as there, the
rest is taken from this environment.
"""

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHECKOUT = Path(__file__).parents[1]
NEEDED = (
    "/usr/sbin/sshd",
    "/usr/bin/ssh-keygen",
    "/usr/bin/rsync",
    "/usr/sbin/ip",
    "/usr/bin/setpriv",
)

_BOOT = """
set -e
mount --make-rprivate /
mount --bind {folder}/passwd /etc/passwd
mount --bind {folder}/hosts /etc/hosts
mount --bind /dev/null /etc/resolv.conf
mkdir -p /tmp/ray /run/sshd
mount --bind {folder}/ray /tmp/ray
hostname {name}
ip link set lo up
until ip addr add {address}/24 dev eth0 2>/dev/null; do sleep 0.05; done
ip link set eth0 up
ip route add default via {gateway}
/usr/sbin/sshd -D -e -f {folder}/sshd_config &
wait
"""
_SSHD = """
ListenAddress {address}
HostKey {folder}/host_key
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
AuthorizedKeysFile {folder}/authorized_keys
"""
_NAME = f"btray-{os.getpid()}"
_PATIENCE_S = 600
_LIVE = (
    "import ray; ray.init('auto', log_to_driver=False, logging_level='ERROR'); "
    "print(sum(node['Alive'] for node in ray.nodes()))"
)
_RAY = """
from ray.scripts.scripts import main
main()
"""


def why_not() -> str | None:
    """Return what this machine lacks for hosts of its own; None: nothing."""
    if lacking := [path for path in NEEDED if not Path(path).exists()]:
        return f"not here: {', '.join(lacking)}"
    if os.geteuid():
        return "only root makes namespaces"
    trial = "mount --make-rprivate / && hostname try && ip link add name try type bridge \
        && ip link add one type veth peer name two && ip link set one master try"
    apart = ["--net", "--mount", "--pid", "--uts", "--fork", "--mount-proc"]
    done = subprocess.run(["unshare", *apart, "sh", "-c", trial], capture_output=True)
    return None if done.returncode == 0 else f"no namespaces here: {done.stderr.decode().strip()}"


@dataclass(frozen=True)
class Host:
    """A host that is up."""

    name: str
    address: str
    home: Path
    pid: int
    """Of its first process, as this machine counts them."""

    def run(self, command: str) -> "subprocess.CompletedProcess[str]":
        """Run a shell command there, as one at its keyboard would."""
        enter = ["nsenter", f"--target={self.pid}", "--net", "--mount", "--pid", "--uts", "--"]
        home = {"HOME": str(self.home), "PATH": f"{self.home}/btray/bin:{os.environ['PATH']}"}
        plain = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        done = subprocess.run(
            [*enter, "bash", "-c", command], capture_output=True, text=True, cwd="/",
            env=plain | home,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{self.name}: {command}: {done.stdout}{done.stderr}")
        return done

    def connect(self, up: bool) -> None:
        """Plug its cable in, or pull it."""
        state = "up" if up else "down"
        subprocess.run(["ip", "link", "set", _port(self.address), state], check=True)


def _port(address: str) -> str:
    """Return the end of a host's cable at the switch."""
    _, _, network, host = address.split(".")
    return f"btray{network}-{host}"


@contextmanager
def rack(folder: Path, names: tuple[str, ...]) -> Iterator[list[Host]]:
    """Make hosts and the switch between them and this machine, and take all away again."""
    network = f"10.213.{os.getpid() % 250}"
    switch = f"btray{os.getpid() % 250}"
    (folder / "laptop").mkdir(parents=True)
    key = folder / "laptop" / "key"
    _keygen(key)
    with ExitStack() as stack:
        remove = ["ip", "link", "del", switch]
        subprocess.run(remove, check=False, capture_output=True)  # of one that was killed
        subprocess.run(["ip", "link", "add", switch, "type", "bridge"], check=True)
        stack.callback(subprocess.run, remove, check=False)
        _ip("addr", "add", f"{network}.1/24", "dev", switch)
        _ip("link", "set", switch, "up")
        addresses = {name: f"{network}.{number}" for number, name in enumerate(names, 10)}
        known = "".join(f"{address} {name}\n" for name, address in addresses.items())
        yield [
            stack.enter_context(_host(folder / name, name, address, switch, key, known))
            for name, address in addresses.items()
        ]


@contextmanager
def _host(
    folder: Path, name: str, address: str, switch: str, key: Path, known: str
) -> Iterator[Host]:
    home = folder / "home"
    shutil.copytree("/etc/skel", home)
    (folder / "ray").mkdir()
    _keygen(folder / "host_key")
    (folder / "authorized_keys").write_text(key.with_suffix(".pub").read_text())
    (folder / "sshd_config").write_text(_SSHD.format(address=address, folder=folder))
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n{known}")
    others = Path("/etc/passwd").read_text().splitlines(keepends=True)[1:]
    (folder / "passwd").write_text(f"root:*:0:0:root:{home}:/bin/bash\n{''.join(others)}")
    gateway = address.rsplit(".", 1)[0] + ".1"
    boot = _BOOT.format(folder=folder, name=name, address=address, gateway=gateway)
    apart = ["--net", "--mount", "--pid", "--uts", "--fork", "--mount-proc", "--kill-child"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", *apart, "bash", "-c", boot],
            stdout=log, stderr=log, cwd="/",
        )  # fmt: skip
    try:
        pid = _first_process(process)
        _ip("link", "add", _port(address), "type", "veth",
            "peer", "name", "eth0", "netns", str(pid))  # fmt: skip
        _ip("link", "set", _port(address), "master", switch)
        _ip("link", "set", _port(address), "up")
        yield Host(name, address, home, pid)
    finally:
        process.kill()  # and with it, all processes of the host
        process.wait()


def _first_process(process: "subprocess.Popen[bytes]") -> int:
    """Return the first process of the host's own namespaces, once it is there."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    here = Path("/proc/self/ns/pid").readlink()
    while process.poll() is None:
        for child in children.read_text().split():
            if Path(f"/proc/{child}/ns/pid").readlink() != here:
                return int(child)
        time.sleep(0.01)
    raise RuntimeError(f"no host: unshare ended with {process.returncode}")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _keygen(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)


class Laptop:
    """This machine beside the rack: a home folder with the key, the token, the cluster file."""

    def __init__(self, folder: Path, hosts: list[Host], cpus: int, head_cpus: int = 0) -> None:
        """Build the wheel and write the cluster file; so many CPUs Ray counts on each host."""
        self.folder, self.home = folder, folder / "laptop"
        self.head, *self.workers = hosts
        self.file = self.home / "local.yaml"
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        self.environment |= {"HOME": str(self.home), "PYTHONPATH": str(CHECKOUT)}
        self.python("-m", "ray.scripts.scripts", "get-auth-token", "--generate")
        shutil.copytree(
            CHECKOUT, folder / "source", ignore=shutil.ignore_patterns(".*", "build", "demo")
        )
        self.python("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "dist",
                    folder / "source")  # fmt: skip
        self.file.write_text(
            yaml.safe_dump(cluster_file(hosts, self.home / "key", cpus, head_cpus))
        )

    def python(self, *arguments: object, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run Python there."""
        done = subprocess.run(
            [sys.executable, *map(str, arguments)], cwd=self.home, env=self.environment,
            stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip
        if check and done.returncode:
            raise RuntimeError(f"{arguments}: {done.stdout[-6000:]}{done.stderr[-6000:]}")
        return done

    def ray(self, *arguments: object) -> "subprocess.CompletedProcess[str]":
        """Run `ray` there."""
        return self.python("-m", "ray.scripts.scripts", *arguments)

    @contextmanager
    def cluster(self) -> Iterator[None]:
        """`ray up`, wait until all hosts have joined, and `ray down` in the end."""
        self.ray("up", "--yes", "--no-config-cache", self.file)
        try:
            self._await_hosts()
            yield
        finally:
            self.ray("down", "--yes", self.file)
            for left in Path("/tmp/ray").glob(f"cluster-{_NAME}.*"):
                left.unlink()

    def _await_hosts(self) -> None:
        hosts, end = str(1 + len(self.workers)), time.monotonic() + _PATIENCE_S
        while self.head.run(f'RAY_AUTH_MODE=token python -c "{_LIVE}"').stdout.strip() != hosts:
            if time.monotonic() > end:
                monitor = "tail -n 50 /tmp/ray/session_latest/logs/monitor.out"
                raise RuntimeError(f"not all hosts joined: {self.head.run(monitor).stdout}")
            time.sleep(1)

    @contextmanager
    def dashboard(self) -> Iterator[str]:
        """Forward the head's dashboard by SSH, as `ray dashboard` does; yield its URL here."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "BatchMode=yes"]
        command = ["ssh", "-q", "-N", "-i", self.home / "key", "-L", f"{port}:127.0.0.1:8265"]
        for option in options:
            command += ["-o", option]
        with subprocess.Popen([*command, f"root@{self.head.address}"]) as process:
            try:
                while not _answers(port):
                    assert process.poll() is None, f"{self.head.name}: no way in by SSH"
                    time.sleep(0.1)
                yield f"http://127.0.0.1:{port}"
            finally:
                process.terminate()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


def cluster_file(hosts: list[Host], key: Path, cpus: int, head_cpus: int) -> dict[str, Any]:
    """Return deploy/clusters/local.yaml for these hosts."""
    text = (CHECKOUT / "deploy" / "clusters" / "local.yaml").read_text()
    config: dict[str, Any] = yaml.safe_load(text)
    config["cluster_name"] = _NAME
    config["provider"] |= {
        "head_ip": hosts[0].address,
        "worker_ips": [host.address for host in hosts[1:]],
    }
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(key)}
    python = getattr(sys, "_base_executable", sys.executable)
    config["setup_commands"] = [
        _install(line) if "pip install" in line else line.replace("python3 -m", f"{python} -m")
        for line in config["setup_commands"]
    ]
    head, worker = config["head_start_ray_commands"], config["worker_start_ray_commands"]
    head[-1] = head[-1].replace("--num-cpus=0", f"--num-cpus={head_cpus}")
    worker[-1] = worker[-1].replace("ray start", f"ray start --num-cpus={cpus}")
    return config


def _install(command: str) -> str:
    """Install the same wheel, and take what it depends on from this environment."""
    assert "~/btray/bin/pip install --quiet --find-links ~/wheels 'btray==" in command
    here = sysconfig.get_path("purelib")
    lines = [
        "~/btray/bin/pip install --quiet --no-index --no-deps --find-links ~/wheels btray",
        f"echo {here} > $(ls -d ~/btray/lib/python*/site-packages)/here.pth",
        "head -n 1 ~/btray/bin/pip > ~/btray/bin/ray",
        f"printf '%s' '{_RAY}' >> ~/btray/bin/ray && chmod +x ~/btray/bin/ray",
    ]
    return " && ".join(lines)
