"""What every engine promises.

An engine is one region: a libvirt host, a folder of disks, later an OpenStack cloud. Workers and the keeper
call it; the web never does. Everything here fits a cloud that answers slowly and changes behind our back:

* ids are opaque strings, never parsed outside the engine that made them;
* progress may be unknown (``None``), and is then shown as unknown;
* errors are a code and data, so that they can be told in the reader's language;
* every verb may be called again after a death and then finds what is there and goes on;
* every call ends: an engine gives each of its calls a deadline and raises ``Unreachable`` when it passes.

Everything one operation makes lives in one *room* named by the operation's id (its ``key``). ``make_room`` is the
only verb that makes it, so a holder that wakes after its operation was undone finds nothing to write into.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

Handle = dict[str, Any]
"""Where a long work can be found again: JSON, kept on the operation's row."""


class EngineError(Exception):
    """The engine could not do it. ``code`` names a sentence in ``compute.reasons``; ``data`` fills it."""

    def __init__(self, code: str, **data: Any) -> None:
        super().__init__(f"{code} {data}" if data else code)
        self.code = code
        self.data = data


class Unreachable(EngineError):
    """The region did not answer. Nothing is known of what was asked; asking again is right."""

    def __init__(self, **data: Any) -> None:
        super().__init__("unreachable", **data)


class Power(StrEnum):
    RUNNING = "running"
    STOPPED = "stopped"
    PAUSED = "paused"
    # Between two of the above (libvirt's "in shutdown", Nova's task_state): look again.
    CHANGING = "changing"


class Consistency(StrEnum):
    """The level an image *reached* (R8), from best to worst."""

    OFFLINE = "offline"
    FROZEN = "frozen"
    CRASH = "crash"
    MIXED = "mixed"


class WorkState(StrEnum):
    RUNNING = "running"
    DONE = "done"
    # It ended badly; ``Look.error`` says why. Beginning again would be a new attempt with a new instant.
    FAILED = "failed"
    # Nothing of that name exists any more and nobody can say how it ended.
    LOST = "lost"


@dataclass(frozen=True)
class Abilities:
    """What a region can do; pages tell the truth by these."""

    power: bool
    live_capture: bool
    one_instant: bool
    freeze: bool


@dataclass(frozen=True)
class DiskFacts:
    """One disk as the engine shows it. Sizes in bytes."""

    id: str
    device: str  # platform name without /dev/: "vda" is the system disk
    size: int  # capacity the guest sees
    format: str  # "qcow2" or "raw", as declared in the engine, never probed
    medium: str  # "cloud" or "local" (R21)
    allocated: int | None = None  # bytes really in use
    encrypted: bool | None = None
    problem: str = ""  # code of the reason why this disk cannot be captured, or ""


@dataclass(frozen=True)
class InstanceFacts:
    id: str
    name: str
    power: Power
    vcpus: int
    memory_mib: int
    disks: tuple[DiskFacts, ...]  # in device order
    agent: bool | None = None  # does the guest agent answer; None when not asked or not running
    os: str = ""  # as the guest or the image says; "" when unknown
    address: str = ""


@dataclass(frozen=True)
class Inventory:
    """All instances of the region, and the image store's bytes."""

    instances: tuple[InstanceFacts, ...]
    free: int | None
    total: int | None


@dataclass(frozen=True)
class Holding:
    """Something that lies in a region's image store or works for it, as its own name tells."""

    name: str  # of a published file its ``Sealed.id``
    key: str = ""  # the operation in whose name it was made; "" when nothing says so
    part: str = ""  # of a file: which part of the capture; of one that the engine never makes, its own name
    published: bool = False  # a file that ``erase`` deletes by its name
    works: bool = False  # no file, but what writes one: a job, a stand-in, a copier


@dataclass(frozen=True)
class Part:
    """One disk to capture: ``disk`` is its engine id, ``name`` its name in the room ("vda")."""

    disk: str
    name: str


@dataclass(frozen=True)
class Captured:
    """What is known of the instant, as far as the attempt that fixed it saved it."""

    consistency: Consistency
    instant: datetime | None
    frozen: int | None = None  # file systems the freeze took
    thawed: int | None = None  # file systems our own thaw gave back
    freeze_ms: int | None = None
    asked: bool = False  # was the guest asked to freeze, so that it may be frozen, now or later, whatever it answered


@dataclass(frozen=True)
class Look:
    """A long work as observed: bytes done and total per part, None where the engine does not say."""

    state: WorkState
    parts: Mapping[str, tuple[int, int] | None] = field(default_factory=dict)
    error: EngineError | None = None


@dataclass(frozen=True)
class Sealed:
    """One finished file of the store. ``id`` is what ``erase`` takes."""

    id: str
    format: str
    size: int  # capacity in bytes
    stored: int  # bytes really in use
    sha256: str  # of the file's bytes; "" where the engine has none


class Engine(ABC):
    """One region. Construct cheaply: connections open lazily, after the worker's fork."""

    abilities: Abilities

    def __init__(self, region: str, options: Mapping[str, Any]) -> None:
        self.region = region
        self.options = options

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Names and versions of what does the work, for the receipt: ``{"QEMU": "7.2.22"}``."""

    @abstractmethod
    def inventory(self) -> Inventory:
        """Everything that is there now. Stand-ins and other helpers of the engine's own are left out."""

    @abstractmethod
    def space(self) -> tuple[int, int] | None:
        """Free and total bytes of the image store now; None where the region does not say."""

    @abstractmethod
    def holdings(self) -> list[Holding]:
        """Everything that lies in the image store and that works for it now, whoever made it."""

    @abstractmethod
    def prove(self) -> None:
        """Take a small disk all the way of an image, from the copy to its removal; raise what stands in the way."""

    @abstractmethod
    def observe(self, instance: str) -> InstanceFacts | None:
        """One instance now; ``None`` when the engine answers that it is not there."""

    # Power. Both return once asked and do not wait; both are fine when it is so already.
    # ``EngineError("no-power")`` where the region has no machines.
    @abstractmethod
    def start(self, instance: str) -> None: ...

    @abstractmethod
    def stop(self, instance: str, *, force: bool) -> None: ...

    @abstractmethod
    def thaw(self, instance: str) -> bool:
        """Make sure the guest is not frozen; True once it *answered* so, or cannot be frozen (not running)."""

    @abstractmethod
    def make_room(self, key: str) -> None:
        """Make the place in which everything of operation ``key`` will lie. Fine when it is there."""

    @abstractmethod
    def begin(self, key: str, instance: str, parts: tuple[Part, ...]) -> tuple[Handle, Captured]:
        """Start, or *find*, the capture named ``key`` of these disks as of one instant; return once it is fixed.

        All other disks of the instance stay out of it. A guest that is frozen for it is thawed before this
        returns or raises. Raises ``EngineError("no-room")`` when the room is not there.
        """

    @abstractmethod
    def look(self, handle: Handle) -> Look:
        """How far the capture is. Costs little; asked about once a second."""

    @abstractmethod
    def end(self, handle: Handle) -> None:
        """After DONE: give back what the capture held (stand-in, job record). Idempotent."""

    @abstractmethod
    def seal(self, key: str, parts: Mapping[str, int]) -> Generator[dict[str, int], None, dict[str, Sealed]]:
        """Inspect, hash, make durable and publish the captured files of ``key``; ``parts``: name → capacity.

        Yields bytes checked so far per part, at least every second; returns the sealed files by part. Called
        again after it succeeded it gives the same answer. ``EngineError("hostile-image")`` when a file is not a
        standalone image of the declared format and capacity.
        """

    @abstractmethod
    def discard(self, key: str, handle: Handle | None) -> bool:
        """Stop and remove everything named ``key``: job, stand-in, room, published files. Absent is fine.

        True once nothing is left; False when the engine needs more time (asked again).
        """

    @abstractmethod
    def erase(self, stored: str) -> bool:
        """Delete one published file (``Sealed.id``). Absent is fine. True once it is gone."""
