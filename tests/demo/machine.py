"""A plain QEMU under TCG, with nothing between it and the test but its console, its agent and its power button."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

AGENT = "org.qemu.guest_agent.0"
BOOT_SECONDS = 120


class Machine:
    """Runs from construction to the end of its context. ``place``: a short directory for its sockets and console."""

    def __init__(self, place: Path, *disks: Path, memory_mib: int = 192) -> None:
        self.place = place
        self.console = place / "console"
        self.console.unlink(missing_ok=True)
        command = ["qemu-system-x86_64", "-machine", "pc,accel=tcg", "-m", str(memory_mib)]
        command += ["-nodefaults", "-display", "none", "-serial", f"file:{self.console}"]
        command += ["-qmp", f"unix:{place}/qmp,server=on,wait=off"]
        command += ["-chardev", f"socket,id=agent,path={place}/agent,server=on,wait=off"]
        command += ["-device", "virtio-serial", "-device", f"virtserialport,chardev=agent,name={AGENT}"]
        for disk in disks:
            format = disk.suffix.lstrip(".")
            command += ["-drive", f"if=virtio,format={format},file={disk}"]
        with (place / "qemu.err").open("w") as errors:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=errors)

    def said(self) -> str:
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def wait_said(self, words: str) -> None:
        """Return once the console shows these words."""
        self._until(lambda: words in self.said())

    def wait_agent(self) -> None:
        """Return once the agent answers."""
        self._until(lambda: self.run("echo here") == "here\n")

    def wait_off(self) -> None:
        self.process.wait(BOOT_SECONDS)

    def press_power_button(self) -> None:
        with socket.socket(socket.AF_UNIX) as monitor:
            monitor.connect(str(self.place / "qmp"))
            with monitor.makefile("rw") as lines:
                for verb in ("qmp_capabilities", "system_powerdown"):
                    lines.readline()
                    lines.write(json.dumps({"execute": verb}) + "\n")
                    lines.flush()
                lines.readline()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()

    def agent(self, verb: str, **arguments: Any) -> Any:
        """The agent's answer."""
        with socket.socket(socket.AF_UNIX) as agent:
            agent.settimeout(BOOT_SECONDS)
            agent.connect(str(self.place / "agent"))
            with agent.makefile("rw") as lines:
                lines.write(json.dumps({"execute": verb, "arguments": arguments}) + "\n")
                lines.flush()
                answer = json.loads(lines.readline())
        if "error" in answer:
            raise RuntimeError(answer["error"]["desc"])
        return answer["return"]

    def run(self, command: str) -> str:
        """What a shell command prints inside the guest."""
        words = {"path": "/bin/sh", "arg": ["-c", f"export PATH=/bin; {command}"], "capture-output": True}
        pid = self.agent("guest-exec", **words)["pid"]

        def ended() -> Any:
            status = self.agent("guest-exec-status", pid=pid)
            return status if status["exited"] else None

        return base64.b64decode(self._until(ended).get("out-data", "")).decode()

    def _until(self, ask: Callable[[], Any]) -> Any:
        """The first answer that is true."""
        deadline = time.monotonic() + BOOT_SECONDS
        while not (answer := ask()):
            if time.monotonic() > deadline or self.process.poll() is not None:
                told = (self.place / "qemu.err").read_text()
                raise TimeoutError(f"QEMU ({self.process.poll()}): {told}, the console:\n{self.said()}")
            time.sleep(0.05)
        return answer
