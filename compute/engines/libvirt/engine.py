"""The libvirt engine: instances are domains, disks are files, and QEMU itself copies them.

``OPTIONS``: ``URI`` of the libvirtd; ``STORE``, the absolute directory of the images; ``LOCAL_POOLS``, directories
whose disks are local ones (R21); ``DOMAIN_TYPE``, "qemu" (the default: KVM may be there and hang) or "kvm".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from compute.engines.base import (
    Abilities,
    Captured,
    DiskFacts,
    Engine,
    EngineError,
    Handle,
    Holding,
    InstanceFacts,
    Inventory,
    Look,
    Part,
    Power,
    Sealed,
    WorkState,
)
from compute.engines.libvirt import agent, capture, disks, domain, machines
from compute.engines.libvirt import binding as lv
from compute.engines.libvirt.connection import Host
from compute.engines.store import PROOF, Store, told

T = TypeVar("T")

INVENTORY_SECONDS = 30
AGENTS_SECONDS = 15  # of an inventory; the agents not asked by then are those of hosts with many that hang
LOOK_SECONDS = 5
BEGIN_SECONDS = 60  # a freeze and a thaw of 5 s each, the start of a stand-in, a busy machine
POWER_SECONDS = 30  # QEMU starts, or is waited for while it ends


class LibvirtEngine(Engine):
    abilities = Abilities(power=True, live_capture=True, one_instant=True, freeze=True)

    def __init__(self, region: str, options: Mapping[str, Any]) -> None:
        super().__init__(region, options)
        self._host = Host(options["URI"])
        self._store = Store(options["STORE"], check_qcow2=True, notes=(capture.NOTE, capture.COPIED))
        self._local_pools = tuple(Path(pool).resolve() for pool in options.get("LOCAL_POOLS", ()))
        self._domain_type = options.get("DOMAIN_TYPE", "qemu")

    def versions(self) -> dict[str, str]:
        def ask(conn: Any) -> dict[str, str]:
            return {"libvirt": _version(conn.getLibVersion()), "QEMU": _version(conn.getVersion())}

        return self._host.call(ask)

    def inventory(self) -> Inventory:
        def ask(conn: Any) -> tuple[InstanceFacts, ...]:
            facts = []
            patience = time.monotonic() + AGENTS_SECONDS
            for dom in conn.listAllDomains(0):
                try:
                    described = domain.read(dom.XMLDesc(0))
                    if described.stand_in is None:
                        facts.append(self._facts(dom, described, ask_agent=time.monotonic() < patience))
                    else:
                        capture.clear_orphan(dom, described.stand_in, self._store)
                except lv.libvirtError as error:
                    if not machines.gone(error):
                        raise
            return tuple(facts)

        # First: in a store that is not mounted no stand-in has a room, and none of them is an orphan for that.
        free, total = self._store.space()
        return Inventory(self._host.call(ask, INVENTORY_SECONDS), free, total)

    def space(self) -> tuple[int, int] | None:
        return self._store.space()

    def holdings(self) -> list[Holding]:
        works = self._host.call(lambda conn: capture.works(conn, self._store), INVENTORY_SECONDS)
        return [*self._store.holdings(), *works]

    def prove(self) -> None:
        def copy(disk: Path, file: Path) -> None:
            room = self._room(PROOF)
            self._host.call(lambda conn: capture.prove(conn, room, disk, file, self._domain_type), BEGIN_SECONDS)

        self.versions()
        self._store.prove("qcow2", copy)

    def observe(self, instance: str) -> InstanceFacts | None:
        def ask(conn: Any) -> InstanceFacts | None:
            try:
                dom = machines.find(conn, instance)
                return None if dom is None else self._facts(dom, domain.read(dom.XMLDesc(0)), ask_agent=True)
            except lv.libvirtError as error:
                if not machines.gone(error):
                    raise
                return None

        return self._host.call(ask)

    def start(self, instance: str) -> None:
        self._with(instance, lambda dom: _become(dom, True, dom.create), POWER_SECONDS)

    def stop(self, instance: str, *, force: bool) -> None:
        def ask(dom: Any) -> None:
            _become(dom, False, dom.destroy if force else dom.shutdown)

        self._with(instance, ask, POWER_SECONDS)

    def thaw(self, instance: str) -> bool:
        def ask(conn: Any) -> bool:
            dom = machines.find(conn, instance)
            return dom is None or agent.thawed(dom)

        return self._host.call(ask, seconds=30)

    def make_room(self, key: str) -> None:
        self._store.make_room(key)

    def begin(self, key: str, instance: str, parts: tuple[Part, ...]) -> tuple[Handle, Captured]:
        self._store.room(key)
        room = self._room(key)

        def ask(conn: Any) -> tuple[Handle, Captured]:
            with told():
                return capture.begin(conn, room, instance, parts, self._domain_type)

        return self._host.call(ask, BEGIN_SECONDS)

    def look(self, handle: Handle) -> Look:
        def ask(conn: Any) -> Look:
            with told():
                return capture.look(conn, handle, self._room(handle["key"]))

        try:
            self._store.room(handle["key"])
            return self._host.call(ask, LOOK_SECONDS)
        except EngineError as error:
            if error.code != "no-room":
                raise
            return Look(WorkState.LOST)

    def end(self, handle: Handle) -> None:
        self._host.call(lambda conn: capture.end(conn, handle), POWER_SECONDS)

    def seal(self, key: str, parts: Mapping[str, int]) -> Generator[dict[str, int], None, dict[str, Sealed]]:
        return self._store.seal(key, parts)

    def discard(self, key: str, handle: Handle | None) -> bool:
        def ask(conn: Any) -> bool:
            return capture.abort(conn, self._room(key), handle)

        # Twice: a begin that was on its way when the first one looked finds no room after the second line.
        stopped = self._host.call(ask, POWER_SECONDS)
        removed = stopped and self._store.discard(key)
        return removed and self._host.call(ask, POWER_SECONDS)

    def erase(self, stored: str) -> bool:
        return self._store.erase(stored)

    def _room(self, key: str) -> capture.Room:
        return capture.Room(self._store.opened(key), domain.StandIn(str(self._store.root), key))

    def _with(self, instance: str, work: Callable[[Any], T], seconds: float) -> T:
        return self._host.call(lambda conn: work(machines.present(conn, instance)), seconds)

    def _facts(self, dom: Any, described: domain.DomainFacts, *, ask_agent: bool) -> InstanceFacts:
        power = machines.power(dom)
        answers, system = None, ""
        if power is Power.RUNNING and not described.agent:
            answers = False
        elif power is Power.RUNNING and ask_agent:
            answers, system = agent.asked(dom)
        return InstanceFacts(
            id=described.uuid,
            name=described.name,
            power=power,
            vcpus=described.vcpus,
            memory_mib=described.memory_mib,
            disks=tuple(self._disk(disk) for disk in described.disks),
            agent=answers,
            os=system,
        )

    def _disk(self, disk: domain.DomainDisk) -> DiskFacts:
        size, allocated, problem = 0, None, disk.problem
        if not problem:
            try:
                measured = disks.measured(disk)
                size, allocated = measured.size, measured.allocated
            except EngineError as error:
                problem = error.code
        local = bool(problem) or any(Path(disk.path).resolve().is_relative_to(pool) for pool in self._local_pools)
        return DiskFacts(
            id=disk.source,
            device=disk.device,
            size=size,
            format=disk.format,
            medium="local" if local else "cloud",
            allocated=allocated,
            encrypted=disk.encrypted,
            problem=problem,
        )


def _version(number: int) -> str:
    """libvirt writes 9.0.0 as 9000000."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def _become(dom: Any, active: bool, ask: Callable[[], object]) -> None:
    """Ask it to run, or not to, unless it does so already."""
    if bool(dom.isActive()) is active:
        return
    try:
        ask()
    except lv.libvirtError as error:
        # It came to be so by itself, or somebody else was faster.
        if error.get_error_code() != lv.VIR_ERR_OPERATION_INVALID or bool(dom.isActive()) is not active:
            raise
