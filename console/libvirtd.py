"""A private, unprivileged libvirtd: its own sockets, configuration and machines, beside any other on the host.

Standard library only: the supervisor runs it before anything else is there.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path
from urllib.parse import quote

# sun_path of a UNIX socket: 108 bytes with the closing zero.
LONGEST_SOCKET = 107
# The longest of libvirt's own sockets below its directory, the guest agent's. Machine names are cut to 20 characters.
AGENT_SOCKET = "c/libvirt/qemu/channel/target/domain-99999-12345678901234567890/org.qemu.guest_agent.0"

# Without this a second daemon, virtlogd, would be started to write consoles, and outlive us by two minutes.
QEMU_CONF = 'stdio_handler = "file"\n'


class PrivateLibvirtd:
    """The libvirtd whose sockets, settings and state lie under ``root``, as whoever runs it.

    Machines it starts go on when it ends. Raises ``ValueError`` when ``root`` is too long for UNIX sockets.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        room = LONGEST_SOCKET - len(f"/{AGENT_SOCKET}")
        if len(os.fsencode(self.root)) > room:
            raise ValueError(f"{self.root} is too long for libvirt's sockets: at most {room} bytes")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def env(self) -> dict[str, str]:
        """The environment it has to run in."""
        return {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
            "HOME": str(self.root),
            "XDG_RUNTIME_DIR": str(self.root / "r"),
            "XDG_CONFIG_HOME": str(self.root / "c"),
            "XDG_CACHE_HOME": str(self.root / "k"),
            "XDG_DATA_HOME": str(self.root / "d"),
        }

    @property
    def socket(self) -> Path:
        return self.root / "r/libvirt/libvirt-sock"

    @property
    def uri(self) -> str:
        return f"qemu+unix:///session?socket={quote(str(self.socket))}"

    def command(self) -> list[str]:
        """What to run, with ``env``, to have it in the foreground. Makes its directories and settings."""
        if os.geteuid() == 0:
            raise PermissionError("libvirtd here runs as an ordinary user, never as root: make run and make test do so")
        for name in ("r", "c", "k", "d"):
            (self.root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        settings = self.root / "c/libvirt"
        settings.mkdir(mode=0o700, exist_ok=True)
        (settings / "qemu.conf").write_text(QEMU_CONF)
        return ["libvirtd"]

    def start(self) -> None:
        """Run it as our child, with its log in ``root``; it is ready a moment later (``wait_ready``)."""
        command = self.command()
        # Not our own output: machines inherit it, and whoever reads it would wait for them to end.
        with (self.root / "libvirtd.log").open("ab") as log:
            quiet = subprocess.DEVNULL
            self._process = subprocess.Popen(command, env=self.env, cwd="/", stdin=quiet, stdout=log, stderr=log)

    def wait_ready(self, deadline: float = 30) -> None:
        """Return once it accepts connections; ``TimeoutError`` after so many seconds, or at once when it has ended."""
        end = time.monotonic() + deadline
        while not self.ready():
            ended = self._process is not None and self._process.poll() is not None
            if ended or time.monotonic() > end:
                raise TimeoutError(f"libvirtd in {self.root} " + ("ended" if ended else "did not come up"))
            time.sleep(0.05)

    def ready(self) -> bool:
        """Does it accept connections?"""
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.socket))
            except OSError:
                return False
            return True

    def stop(self, *, kill: bool = False) -> None:
        """End the child that ``start`` made. The machines stay."""
        if self._process is not None:
            self._process.kill() if kill else self._process.terminate()
            self._process.wait()
            self._process = None
