"""What follows from the facts: each a line that is fine, doubtful or would fail a run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from btray.doctor.node import NodeFacts

CLOCK_WARN_S: Final = 2.0
CLOCK_FAIL_S: Final = 60.0
"""Signatures of requests to buckets are refused some minutes off; logs mislead much sooner."""
DISK_WARN: Final = 0.15
DISK_FAIL: Final = 0.05
"""Ray writes no more objects to a disk of which less than this is free."""
_GIB: Final = 2**30


class Status(StrEnum):
    """How a check came out."""

    ok = "ok"
    warn = "warn"
    fail = "fail"


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    name: str
    status: Status
    found: str
    advice: str = ""


@dataclass(frozen=True)
class ClusterNode:
    """What the cluster's head says of a node."""

    id: str
    address: str
    cpus: int
    gpus: int
    object_store: int
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """A node with what it said of itself, or why it said nothing, between two looks at a clock."""

    node: ClusterNode
    facts: NodeFacts | None
    error: str = ""
    asked: float = 0.0
    answered: float = 0.0

    @property
    def name(self) -> str:
        """What a person calls the node."""
        return self.node.address


def check_answers(answers: Sequence[Answer]) -> Check:
    """Every node runs a task of ours."""
    silent = [f"{answer.name}: {answer.error}" for answer in answers if answer.facts is None]
    if silent:
        advice = "install btray in the client's version there, or take the node out"
        return Check("nodes", Status.fail, "; ".join(silent), advice)
    return Check("nodes", Status.ok, f"{len(answers)} of {len(answers)} answer")


def check_versions(own: NodeFacts, answers: Sequence[Answer]) -> Check:
    """Every node has this process's Ray, Python (minor) and btray, and one torch."""
    mine = _versions(own)
    other = [
        f"{answer.name}: {_differing(mine, _versions(answer.facts))}"
        for answer in answers
        if answer.facts is not None and _versions(answer.facts) != mine
    ]
    if other:
        wanted = ", ".join(f"{name} {number}" for name, number in mine.items())
        return Check("versions", Status.fail, "; ".join(other), f"install everywhere: {wanted}")
    return Check("versions", Status.ok, ", ".join(f"{name} {n}" for name, n in mine.items()))


def _versions(facts: NodeFacts) -> dict[str, str]:
    python = ".".join(facts.python.split(".")[:2])
    return {
        "Ray": facts.ray, "Python": python, "btray": facts.btray, "torch": facts.torch or "none",
    }  # fmt: skip


def _differing(mine: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {theirs[name]}" for name in mine if theirs[name] != mine[name])


def check_resources(nodes: Sequence[ClusterNode], shortage: str = "") -> Check:
    """There is room for the run that is asked about."""
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    store = sum(node.object_store for node in nodes) / _GIB
    found = f"{len(nodes)} nodes, {cpus} CPUs, {gpus} GPUs, {store:.1f} GiB of object stores"
    if shortage:
        return Check("resources", Status.fail, found, shortage)
    return Check("resources", Status.ok, found)


def check_storage(storage: str, answers: Sequence[Answer]) -> Check:
    """Every node writes where runs are kept, and all mean the same place."""
    broken = [
        f"{answer.name}: {answer.facts.storage_error}"
        for answer in answers
        if answer.facts is not None and answer.facts.storage_error
    ]
    if broken:
        advice = "give the nodes the right to write there, or set run.storage to another place"
        return Check("storage", Status.fail, "; ".join(broken), advice)
    apart = [a.name for a in answers if a.facts is not None and not a.facts.sees_marker]
    if apart:
        advice = "set run.storage to a bucket or a folder that all nodes share"
        found = f"{storage} is another place on {', '.join(apart)}"
        return Check("storage", Status.fail, found, advice)
    return Check("storage", Status.ok, f"{storage} is written and read by every node")


def check_clocks(answers: Sequence[Answer]) -> Check:
    """Clocks agree, as far as the time between question and answer tells."""
    skews = {a.name: _skew(a) for a in answers if a.facts is not None}
    worst = max(skews, key=lambda name: skews[name], default="")
    skew = skews.get(worst, 0.0)
    if skew < CLOCK_WARN_S:
        return Check("clocks", Status.ok, f"less than {CLOCK_WARN_S:.0f} s apart")
    status = Status.fail if skew >= CLOCK_FAIL_S else Status.warn
    advice = "let chrony or systemd-timesyncd set the node's clock"
    return Check("clocks", status, f"{worst}: at least {skew:.1f} s off", advice)


def _skew(answer: Answer) -> float:
    """Return by how much at least a node's clock differs from ours."""
    if answer.facts is None:
        return 0.0
    return max(answer.asked - answer.facts.clock, answer.facts.clock - answer.answered, 0.0)


def check_ports(answers: Sequence[Answer]) -> Check:
    """Every node reaches the head and every other."""
    closed = [
        f"from {answer.name}: {', '.join(answer.facts.closed_doors)}"
        for answer in answers
        if answer.facts is not None and answer.facts.closed_doors
    ]
    if closed:
        advice = "let the nodes reach each other on all TCP ports (security group, NetworkPolicy)"
        return Check("ports", Status.fail, "; ".join(closed), advice)
    return Check("ports", Status.ok, "every node reaches every other and the head")


def check_neighbours(answers: Sequence[Answer]) -> Check:
    """No node belongs to another cluster beside this one."""
    others = [
        f"{answer.name}: also of {', '.join(answer.facts.clusters)}"
        for answer in answers
        if answer.facts is not None and answer.facts.clusters
    ]
    if others:
        advice = (
            "end the other (`ray stop` ends all of a machine's), or use it: RAY_ADDRESS=…; they "
            "count the same cores twice, and jobs and runs of two on one machine get in each "
            "other's way"
        )
        return Check("neighbours", Status.warn, "; ".join(others), advice)
    return Check("neighbours", Status.ok, "no node belongs to another cluster")


def check_authentication(on: bool, dashboard: str) -> Check:
    """Ask for a token, and keep the dashboard private."""
    private = dashboard.rpartition(":")[0] in {"127.0.0.1", "localhost", "::1", "[::1]", ""}
    if not on:
        advice = "set RAY_AUTH_MODE=token on every node and client: whoever reaches it runs code"
        return Check("authentication", Status.warn, "no token is asked for", advice)
    if not private:
        advice = "start the head with --dashboard-host=127.0.0.1, or keep its port closed"
        found = f"token; the dashboard listens on {dashboard}"
        return Check("authentication", Status.warn, found, advice)
    return Check("authentication", Status.ok, "token; the dashboard is private")


def check_disks(answers: Sequence[Answer]) -> Check:
    """There is room for what Ray spills and btray caches."""
    worst, status = "", Status.ok
    least = 1.0
    for answer in answers:
        if answer.facts is None or not answer.facts.disk_total:
            continue
        free = answer.facts.disk_free / answer.facts.disk_total
        if free < least:
            least, worst = free, f"{answer.name}: {answer.facts.disk_free / _GIB:.0f} GiB free"
    if least < DISK_WARN:
        status = Status.fail if least < DISK_FAIL else Status.warn
    advice = "make room under Ray's --temp-dir (old sessions in /tmp/ray)"
    found = f"{worst} ({100 * least:.0f} %)" if worst else "unknown"
    return Check("disk", status, found, advice if status != Status.ok else "")


def check_memory(answers: Sequence[Answer]) -> Check:
    """Object stores lie in memory."""
    small = [
        f"{a.name}: /dev/shm has {a.facts.shared_memory / _GIB:.1f} GiB for a store of "
        f"{a.node.object_store / _GIB:.1f} GiB"
        for a in answers
        if a.facts is not None and 0 < a.facts.shared_memory < a.node.object_store
    ]
    if small:
        advice = "give the container a larger /dev/shm (--shm-size, an emptyDir of medium Memory)"
        return Check("shared memory", Status.warn, "; ".join(small), advice)
    return Check("shared memory", Status.ok, "holds every object store")


def check_gpus(answers: Sequence[Answer], wanted: bool = False) -> Check:
    """Have torch use what Ray counts as GPUs."""
    faults = [fault for answer in answers for fault in _gpu_faults(answer)]
    if faults:
        advice = "install a driver and a torch that fit each other (nvidia-smi, torch.version.cuda)"
        return Check("GPUs", Status.fail, "; ".join(faults), advice)
    total = sum(answer.node.gpus for answer in answers)
    unused = [
        f"{a.name}: {a.facts.gpus_of_driver} there, none given to Ray"
        for a in answers
        if a.facts is not None and a.facts.gpus_of_driver and not a.node.gpus
    ]
    if unused:
        return Check("GPUs", Status.warn, "; ".join(unused), "start Ray there with --num-gpus")
    if not total:
        advice = "train.gpu=always waits for a GPU node" if wanted else ""
        return Check("GPUs", Status.warn if wanted else Status.ok, "none", advice)
    kinds = {_cuda(answer.facts) for answer in answers if answer.facts and answer.node.gpus}
    return Check("GPUs", Status.ok, f"{total}; {', '.join(sorted(kinds))}")


def _gpu_faults(answer: Answer) -> Iterator[str]:
    facts, promised = answer.facts, answer.node.gpus
    if facts is None or not promised:
        return
    if facts.gpu_error:
        yield f"{answer.name}: torch cannot be asked ({facts.gpu_error})"
    elif (facts.gpus_of_torch or 0) < promised:
        yield (
            f"{answer.name}: Ray counts {promised}, the driver shows {facts.gpus_of_driver}, "
            f"torch {facts.gpus_of_torch or 0}"
        )


def _cuda(facts: NodeFacts) -> str:
    return f"CUDA {facts.cuda or '?'}, NCCL {facts.nccl or '?'}"
