"""The process behind `make run`: starts everything in order, keeps it running, stops it in reverse.

    private Valkey and libvirtd → migrations, texts, static files → web → the demo's machines → workers and keeper

A child that dies is started again, more slowly each time. On SIGINT or SIGTERM: the web first; an operation gets ten
seconds to end, then is let go of and stays live for the next start; guests are shut down; Valkey goes last, and nothing
is left behind.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings

from console import processes, valkey
from console.demo import ACCOUNTS, ADMIN, PASSWORD
from console.libvirtd import PrivateLibvirtd

STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
LONG_WORKERS = 2  # per region
WORKER_TTL = ("--worker-ttl", "60")  # one that was killed is missed after two minutes, not eight
OPERATIONS_GET = 10.0  # seconds for a running operation to end
LETTING_GO = 5.0  # seconds for its work-horse to let go of it
GUESTS_GET = 20  # seconds for guests to shut down, before force
STEADY = 60.0  # seconds after which a child counts as having run well
SLOWEST = 60.0  # seconds between two starts of a child that keeps dying
LOG_LIMIT = 10 << 20  # bytes after which a log is put aside at a start

# What of the children's logs the terminal shows; the rest is in the files.
NOTABLE = re.compile(r",\d{3} (WARNING|ERROR|CRITICAL) |\[(ERROR|CRITICAL)\]|^Traceback")
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d|\[\d{4}-|\d+:[A-Z] ")


class Stop(Exception):
    """A signal asked us to stop."""


class Failed(Exception):
    """Without this there is no console; the text is for the terminal."""


def say(text: object) -> None:
    """On the terminal, as long as there is one: closing its window must stop us in order, not end us."""
    try:
        print(text, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Log:
    """The file a child writes to, and how far the terminal has followed it.

    The terminal shows warnings and worse of what stays, and what a step prints that ``talks`` to the user.
    """

    def __init__(self, path: Path, *, stays: bool, talks: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > LOG_LIMIT:
            path.rename(f"{path}.1")
        path.touch()
        self.path = path
        self.stays, self.talks = stays, talks
        self.showing = False
        self.read = path.stat().st_size

    def follow(self) -> None:
        """Print what is to be shown of the whole lines written since the last call."""
        if not (self.stays or self.talks):
            return
        try:
            with self.path.open("rb") as file:
                file.seek(self.read)
                whole, newline, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            self.read = 0  # put away by somebody; the child's next start makes it anew
            return
        self.read += len(whole) + len(newline)
        for line in whole.decode(errors="replace").splitlines():
            # A line that is no log line, as in a traceback, belongs to the one before it.
            if NOTABLE.search(line):
                self.showing = self.stays
            elif LOG_LINE.match(line):
                self.showing = False
            elif self.talks:
                self.showing = True
            if self.showing:
                say(f"{self.path.stem}: {line}")

    def tail(self) -> str:
        return "\n".join(self.path.read_text(errors="replace").splitlines()[-20:])


@dataclass
class Child:
    """A process of ours. ``wanted``: it is started again when it ends."""

    command: list[str]
    env: dict[str, str]
    log: Log
    wanted: bool = True
    death_signal: signal.Signals = signal.SIGKILL
    pid: int | None = None
    code: int = 0
    started: float = 0.0
    failures: int = 0

    def start(self) -> None:
        self.log.path.parent.mkdir(parents=True, exist_ok=True)
        with self.log.path.open("ab") as out:
            process = subprocess.Popen(
                self.command,
                cwd=settings.BASE_DIR,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                # Ctrl-C is for us alone: we say who stops when.
                start_new_session=True,
                # Between fork and exec it is safe, since we have no threads.
                preexec_fn=lambda: processes.child_setup(self.death_signal),  # noqa: PLW1509
            )
        process.returncode = 0  # we reap by pid, see Supervisor.tick
        self.pid, self.started = process.pid, time.monotonic()

    def ended(self, code: int) -> None:
        self.pid, self.code = None, code
        self.failures = 1 if time.monotonic() - self.started > STEADY else self.failures + 1

    @property
    def due(self) -> float:
        return self.started + min(SLOWEST, 2.0 ** (self.failures - 1))


class Supervisor:
    def __init__(self, port: int) -> None:
        self.port = port
        self.python = sys.executable
        self.manage = [self.python, "manage.py"]
        self.env = os.environ | {"PYTHONUNBUFFERED": "1"}
        self.libvirtd = PrivateLibvirtd(settings.LIBVIRTD) if "kvm-1" in settings.ENGINES else None
        self.children: dict[str, Child] = {}
        self.stopping = False

    # One thread, and one place where time passes -----------------------------------------------------------------

    def tick(self, seconds: float = 0.2) -> None:
        """Let up to so much time pass, looking after the children. Raises ``Stop`` the first time a signal says so."""
        info = signal.sigtimedwait(STOP_SIGNALS | {signal.SIGCHLD}, seconds)
        self.reap()
        for name, child in self.children.items():
            child.log.follow()
            if child.wanted and child.pid is None and child.due <= time.monotonic():
                say(f"Starting {name} again.")
                child.start()
        if info and info.si_signo in STOP_SIGNALS and not self.stopping:
            self.stopping = True
            raise Stop

    def reap(self) -> None:
        """Take note of all that ended: children, and what they left behind, which has become ours.

        Who was stopped goes on: a keeper that stands still watches nobody, and Ctrl-C is the way to stop us.
        """
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            except ChildProcessError:
                return
            if not pid:
                return
            if os.WIFSTOPPED(status):
                say(f"Process {pid} was stopped: it goes on.")
                os.kill(pid, signal.SIGCONT)
                continue
            for name, child in self.children.items():
                if child.pid == pid:
                    child.ended(os.waitstatus_to_exitcode(status))
                    if child.wanted:
                        say(f"{name} ended with {child.code}; its log: {child.log.path}")

    def until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Tick until it is true; False when that took too long."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                return False
            self.tick()
        return True

    # Children ----------------------------------------------------------------------------------------------------

    def start(
        self,
        name: str,
        command: list[str],
        *,
        env: dict[str, str] | None = None,
        wanted: bool = True,
        death_signal: signal.Signals = signal.SIGKILL,
        talks: bool = False,
    ) -> Child:
        log = Log(settings.DATA / "log" / f"{name}.log", stays=wanted, talks=talks)
        child = self.children[name] = Child(command, env or self.env, log, wanted, death_signal)
        child.start()
        return child

    def step(self, name: str, command: list[str], *, seconds: float = 900, talks: bool = False) -> None:
        """Run something to its end. Raises ``Failed``."""
        child = self.start(name, command, wanted=False, talks=talks)
        if not self.until(lambda: child.pid is None, seconds):
            raise Failed(f"{name} did not end in {seconds:.0f} s.")
        if child.code:
            raise Failed(f"{name} failed:\n{child.log.tail()}")

    def stop(self, names: Collection[str], seconds: float) -> None:
        """SIGTERM; after so many seconds also to their own children; in the end SIGKILL, with all that is below them.

        A worker waits for its work-horse, which lets go of its operation when it is asked: killed, it would leave a
        strike. What the work-horse itself has started is not asked: its death would look like the operation's failure.
        """
        children = [self.children[name] for name in names if name in self.children]
        for child in children:
            child.wanted = False
            if child.pid:
                os.kill(child.pid, signal.SIGTERM)
        if not self.until(lambda: not any(child.pid for child in children), seconds):
            for pid in [child.pid for child in children if child.pid]:
                processes.ask(processes.children(pid))
            self.until(lambda: not any(child.pid for child in children), LETTING_GO)
            for pid in [child.pid for child in children if child.pid]:
                # The worker first: it would start another work-horse.
                processes.kill([pid, *processes.descendants(pid)])
            self.until(lambda: not any(child.pid for child in children), 5)

    # Up and down -------------------------------------------------------------------------------------------------

    def up(self) -> None:
        valkey.socket_directory(settings.SOCKETS)
        end_leftovers()
        self.start("valkey", valkey.command(settings.SOCKETS, settings.DATA), death_signal=signal.SIGTERM)
        if self.libvirtd:
            self.start_libvirtd(self.libvirtd)
        self.step("prepare", [*self.manage, "prepare"])
        # The page reads rows only: it may answer before there is anyone to do what it is asked.
        self.start("web", self.gunicorn())
        if not self.until(lambda: valkey.answers(settings.SOCKETS / "valkey.sock"), 20):
            raise Failed(f"Valkey does not come up:\n{self.children['valkey'].log.tail()}")
        if self.libvirtd:
            if not self.until(self.libvirtd.ready, 30):
                raise Failed(f"libvirtd does not come up:\n{self.children['libvirtd'].log.tail()}")
            self.step("power-on", self.machines("power_on"))
        self.step("demo", [*self.manage, "demo"], talks=True)
        for queue in settings.RQ_QUEUES:
            for number in range(LONG_WORKERS if queue.startswith("long-") else 1):
                self.start(f"worker-{queue}-{number + 1}", [*self.manage, "rqworker", queue, *WORKER_TTL])
        self.start("keeper", [*self.manage, "keeper"])
        self.announce()

    def gunicorn(self) -> list[str]:
        options = {
            "bind": f"127.0.0.1:{self.port}",
            "worker-class": "gthread",
            "workers": "2",
            "threads": "8",
            "graceful-timeout": "5",
            "log-level": "warning",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        return [self.python, "-m", "gunicorn", "--no-control-socket", *words, "console.wsgi"]

    def start_libvirtd(self, libvirtd: PrivateLibvirtd) -> None:
        # Its directory has to be short, so it lies with the sockets; what has to outlive /tmp lies with the data.
        libvirtd.root.mkdir(mode=0o700, exist_ok=True)
        for name in ("c", "d"):
            kept, link = settings.DATA / "libvirtd" / name, libvirtd.root / name
            kept.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(kept)
        self.start("libvirtd", libvirtd.command(), env=libvirtd.env, death_signal=signal.SIGTERM)

    def machines(self, verb: str, *arguments: object) -> list[str]:
        """A command for the demo's machines; in a process of its own, where a libvirtd that hangs holds up nobody."""
        words = ", ".join(["settings.ENGINES['kvm-1']['OPTIONS']", *map(repr, arguments)])
        imports = f"from django.conf import settings; from console.demo.machines import {verb}"
        return [self.python, "-c", f"{imports}; {verb}({words})"]

    def announce(self) -> None:
        """Tell the address and who may sign in, once the page answers."""
        address = f"http://127.0.0.1:{self.port}/"
        if not self.until(lambda: page_answers(address), 60):
            raise Failed(f"{address} does not answer:\n{self.children['web'].log.tail()}")
        say(f"\nStillframe is at {address} — Ctrl-C stops it. Sign in as")
        for name in ACCOUNTS:
            say(f"  {name:8} {PASSWORD}{'   (admin)' if name == ADMIN else ''}")
        say(f"Logs: {settings.DATA}/log")

    def down(self) -> None:
        """Stop everything, in the reverse order of up. Signals that come now change nothing: it is under way."""
        self.stopping = True
        for child in self.children.values():
            child.wanted = False
        self.stop(["web"], 7)
        self.stop([name for name in self.children if name.startswith("worker-") or name == "keeper"], OPERATIONS_GET)
        if "libvirtd" in self.children:
            try:
                self.step("power-off", self.machines("power_off", GUESTS_GET), seconds=GUESTS_GET + 10)
            except Failed as failed:
                say(failed)
        self.stop([name for name in self.children if name != "valkey"], 10)
        self.stop(["valkey"], 10)
        rest = processes.descendants(os.getpid()) | processes.marked([settings.DATA, settings.SOCKETS])
        processes.end(rest, 2)


def page_answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:  # noqa: S310 - our own address
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        raise Failed(f"{address} answers {error.code}.") from error
    except OSError:
        return False


def end_leftovers() -> None:
    """After a crash: end what of ours still runs, but machines and detached copies, which are found again."""
    left = processes.marked([settings.DATA, settings.SOCKETS])
    kept = ("qemu-system-", "copier.py")
    processes.end({pid for pid in left if not any(word in processes.command_line(pid) for word in kept)}, 5)


def main() -> int:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "console.settings")
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS | {signal.SIGCHLD})
    processes.adopt_orphans()
    supervisor = Supervisor(port=int(os.environ.get("PORT") or "8000"))
    try:
        supervisor.up()
        while True:
            supervisor.tick(0.5)
    except Stop:
        say("\nStopping: operations get 10 seconds, guests 20.")
        return 0
    except (Failed, valkey.NoValkey) as failed:
        say(failed)
        return 1
    finally:
        supervisor.down()


if __name__ == "__main__":
    sys.exit(main())
