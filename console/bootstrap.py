#!/usr/bin/env python3
"""Everything before the first import of Django: packages, account, copy of the code, virtualenv.

    python3 console/bootstrap.py run|test|kill-matrix|lint|clean-demo

Needs nothing but this interpreter. As an ordinary user everything lies in the checkout's var/. As root nothing may
run that reads a guest's bytes, and a checkout in /root is out of everybody else's reach: so all of it runs under one
system account, from a copy of the code in /var/lib/stillframe that is made again at each start.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

CHECKOUT = Path(__file__).resolve().parent.parent
# A script's own directory comes first in the path: not that of console/, whose modules are named like others'.
sys.path[0] = str(CHECKOUT)

from console import processes  # noqa: E402

ACCOUNT = "stillframe"
HOME = Path("/var/lib/stillframe")
ROOT = os.geteuid() == 0
# As root the account could not read an interpreter that lies in root's home.
PYTHON = "/usr/bin/python3" if ROOT else sys.executable

VENV_PACKAGES = ("python3-venv",)
LIBVIRT_PACKAGES = (
    "ca-certificates",
    "e2fsprogs",
    "gcc",
    "libc6-dev",
    "libvirt-daemon",
    "libvirt-daemon-driver-qemu",
    "libvirt-dev",
    "pkg-config",
    "python3-dev",
    "qemu-system-x86",
    "qemu-utils",
)
# gettext for `make lint` alone: it tells whether a text is missing from the catalogues.
TEST_PACKAGES = ("chromium", "fonts-noto-cjk", "gettext", "postgresql")

# What of root's environment reaches the account: how to get at packages, what to run, how to print.
KEPT = ("CI", "COLUMNS", "ENGINE", "KILL_ARGS", "LANG", "PORT", "PYTEST_ARGS", "TERM", "TZ")
KEPT_PREFIXES = ("LC_", "LIMIT_", "PIP_", "SSL_")
KEPT_SUFFIXES = ("_BUNDLE", "_CERT", "_PROXY", "_proxy")


class Refused(Exception):
    """Something only the user can change; told in one line."""


@dataclass(frozen=True)
class Place:
    """Where one kind of start (demo or test) of this checkout keeps everything it makes."""

    kind: str

    @property
    def base(self) -> Path:
        return HOME / _hash() / self.kind if ROOT else CHECKOUT / "var" / self.kind

    @property
    def sockets(self) -> Path:
        """Not below base, and short: socket paths end at 108 bytes, and libvirt's own part takes 87."""
        return Path("/tmp", f"sf-{_hash(self.kind)}")  # noqa: S108 - the account makes it, or refuses one it does not own

    @property
    def code(self) -> Path:
        return self.base / "code" if ROOT else CHECKOUT

    @property
    def venv(self) -> Path:
        return self.base / "venv"

    @property
    def data(self) -> Path:
        return self.base / engine()

    @property
    def lock(self) -> Path:
        """Outside base, which is the account's: root opens nothing there."""
        return self.base.with_name(f"{self.kind}.lock")

    def environment(self) -> dict[str, str]:
        """What everything that is started here gets."""
        kept = dict(os.environ)
        if ROOT:
            kept = {
                name: value
                for name, value in os.environ.items()
                if name in KEPT or name.startswith(KEPT_PREFIXES) or name.endswith(KEPT_SUFFIXES)
            }
            kept |= {"HOME": str(self.base), "USER": ACCOUNT, "LOGNAME": ACCOUNT}
            kept["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return kept | {
            "PATH": f"{self.venv}/bin:{kept.get('PATH', os.defpath)}",
            "VIRTUAL_ENV": str(self.venv),
            "ENGINE": engine(),
            "STILLFRAME_DATA": str(self.data),
            "STILLFRAME_SOCKETS": str(self.sockets),
        }


def engine() -> str:
    chosen = os.environ.get("ENGINE", "libvirt")
    if chosen not in ("libvirt", "folder"):
        raise Refused(f"ENGINE is {chosen!r}: choose libvirt or folder.")
    return chosen


def _hash(kind: str = "") -> str:
    return hashlib.sha256(f"{os.geteuid()}:{CHECKOUT}:{kind}".encode()).hexdigest()[:8]


def port() -> int:
    chosen = os.environ.get("PORT") or "8000"
    if not chosen.isdecimal() or not 0 < int(chosen) < 65536:
        raise Refused(f"PORT is {chosen!r}: choose a number from 1 to 65535.")
    return int(chosen)


# Packages ------------------------------------------------------------------------------------------------------------


def install_packages(packages: tuple[str, ...]) -> None:
    """Have these Debian packages, naming those it installs; ``Refused`` names those it may not install."""
    if not shutil.which("dpkg-query"):
        print(f"This is no Debian system: what {', '.join(packages)} bring must be there already.")
        return
    query = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *packages]
    known = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split("\n")
    missing = [package for package in packages if f"{package} installed" not in known]
    # Without apt's lists the demo could not fetch what its guests are made of.
    if not missing and any(Path("/var/lib/apt/lists").glob("*_Packages*")):
        return
    sudo = [] if ROOT else ["sudo", "-n"]
    if not ROOT and not _may_sudo():
        raise Refused(f"Debian packages are missing, and this account may not install them: {' '.join(missing)}")
    print(f"Installing Debian packages: {' '.join(missing)}", flush=True)
    quiet = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-y"]
    for step in (["update"], ["install", "--no-install-recommends", *missing]):
        done = subprocess.run(
            [*quiet, *step],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise Refused(f"apt-get {step[0]} failed:\n{done.stdout}")


def _may_sudo() -> bool:
    return (
        bool(shutil.which("sudo"))
        and not subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode
    )


# Under the account ---------------------------------------------------------------------------------------------------


def make_account() -> None:
    try:
        pwd.getpwnam(ACCOUNT)
    except KeyError:
        command = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", str(HOME)]
        subprocess.run([*command, "--shell", "/usr/sbin/nologin", ACCOUNT], check=True)


def make_base(place: Place) -> None:
    if not ROOT:
        place.base.mkdir(parents=True, exist_ok=True)
        return
    make_account()
    account = pwd.getpwnam(ACCOUNT)
    # Root's, so that the account cannot put something else where root looks for the next level.
    place.base.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if not place.base.exists():
        place.base.mkdir(mode=0o700)
        os.chown(place.base, account.pw_uid, account.pw_gid)


def as_account(command: list[str]) -> list[str]:
    """The command, told to end when we die; as root, run by the account."""
    drop = [f"--reuid={ACCOUNT}", f"--regid={ACCOUNT}", "--init-groups"] if ROOT else []
    # In this one call: a death signal set before the account changes is lost.
    return ["setpriv", *drop, "--pdeathsig=TERM", "--", *command]


def copy_code(place: Place) -> None:
    """Lay the checkout's files down in place.code, as they are now. The account writes; root only reads."""
    if not ROOT:
        return
    listing = ["git", "-C", str(CHECKOUT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        # Git asks whose the repository is; we know that we mean this one.
        told = subprocess.run(
            listing, check=True, capture_output=True, text=True, env=os.environ | _safe_directory()
        ).stdout
        names = sorted(set(told.split("\0")) - {""})
    except (OSError, subprocess.CalledProcessError):
        left_out = {".git", ".venv", "var", "__pycache__"}
        paths = (path.relative_to(CHECKOUT) for path in sorted(CHECKOUT.rglob("*")))
        names = [str(path) for path in paths if not left_out & set(path.parts) and not (CHECKOUT / path).is_dir()]
    script = 'rm -rf "$1.new" && mkdir "$1.new" && tar -xf - -C "$1.new" && rm -rf "$1" && mv "$1.new" "$1"'
    receiver = subprocess.Popen(
        as_account(["sh", "-c", script, "sh", str(place.code)]), stdin=subprocess.PIPE, cwd="/", env=place.environment()
    )
    assert receiver.stdin
    with receiver.stdin as pipe, tarfile.open(fileobj=pipe, mode="w|") as archive:
        for name in names:
            if os.path.lexists(CHECKOUT / name):
                archive.add(CHECKOUT / name, name, recursive=False, filter=_readable)
    if receiver.wait():
        raise Refused(f"The code could not be copied to {place.code}.")


def _safe_directory() -> dict[str, str]:
    return {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": str(CHECKOUT)}


def _readable(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """A checkout under a strict umask is still code that the account has to read."""
    member.mode |= 0o600
    return member


def make_virtualenv(place: Place, files: tuple[str, ...]) -> None:
    """Have exactly the pinned, hash-checked packages of these requirement files in place.venv."""
    wanted = hashlib.sha256(os.path.realpath(PYTHON).encode())
    for name in files:
        wanted.update((CHECKOUT / "requirements" / name).read_bytes())
    stamp = f"{place.venv}/{wanted.hexdigest()[:16]}"
    run = Runner(place)
    if run.quietly(["test", "-e", stamp]) is None:
        return
    print("Installing Python packages into a virtualenv …", flush=True)
    pip = [f"{place.venv}/bin/python", "-m", "pip", "install", "-q", "--no-input", "--require-hashes"]
    steps = [[PYTHON, "-m", "venv", "--clear", str(place.venv)]]
    for name in files:
        # libvirt-python is compiled: with the setuptools that is pinned and installed, not with one fetched for it.
        isolation = ["--no-build-isolation"] if name == "libvirt.txt" else []
        steps.append([*pip, *isolation, "-r", f"requirements/{name}"])
    for step in [*steps, ["touch", stamp]]:
        if (failure := run.quietly(step)) is not None:
            raise Refused(f"{' '.join(step)} failed:\n{failure}")


@dataclass(frozen=True)
class Runner:
    """Starts commands where a place is set up: in its code, with its environment, by the right account."""

    place: Place

    def quietly(self, command: list[str]) -> str | None:
        """Run it to its end; None when it succeeded, else what it said."""
        done = subprocess.run(
            as_account(command),
            cwd=self.place.code,
            env=self.place.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.stdout if done.returncode else None

    def run(self, command: list[str], **environment: str) -> int:
        """Run it in the foreground, passing on the signals that end us; its exit code."""
        child = subprocess.Popen(
            as_account(command),
            cwd=self.place.code,
            env=self.place.environment() | environment,
            # Ctrl-C reaches it through us, and once.
            start_new_session=True,
        )
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: os.kill(child.pid, number))
        # Not child.wait: orphans that have become ours have to be reaped too, or libvirt waits for zombies.
        while (ended := os.wait())[0] != child.pid:
            pass
        child.returncode = os.waitstatus_to_exitcode(ended[1])
        return 128 - child.returncode if child.returncode < 0 else child.returncode


def lock(place: Place) -> None:
    """One start of a kind per checkout, until this process ends; ``Refused`` tells where the other one is."""
    place.lock.parent.mkdir(parents=True, exist_ok=True)
    held = os.open(place.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Refused(f"This checkout's {place.kind} is running already: {os.pread(held, 200, 0).decode()}") from None
    os.ftruncate(held, 0)
    os.pwrite(held, (f"http://127.0.0.1:{port()}/" if place.kind == "demo" else f"process {os.getpid()}").encode(), 0)


def prepare(place: Place, packages: tuple[str, ...], files: tuple[str, ...]) -> Runner:
    install_packages(packages)
    lock(place)
    make_base(place)
    copy_code(place)
    make_virtualenv(place, files)
    return Runner(place)


# The verbs -----------------------------------------------------------------------------------------------------------


def run() -> int:
    """The console with its demo, until Ctrl-C."""
    place, asked = Place("demo"), port()
    libvirt = engine() == "libvirt"
    packages = VENV_PACKAGES + (LIBVIRT_PACKAGES if libvirt else ())
    runner = prepare(place, packages, ("base.txt", "libvirt.txt") if libvirt else ("base.txt",))
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", asked)) == 0:
            raise Refused(f"Port {asked} is in use by something else: choose another, as in `PORT=8001 make run`.")
    print(f"Data: {place.data}   sockets: {place.sockets}" + (f"   account: {ACCOUNT}" if ROOT else ""), flush=True)
    return runner.run([f"{place.venv}/bin/python", "-m", "console.supervisor"], STILLFRAME_ENV="demo")


def prepare_tests() -> Runner:
    os.environ.pop("ENGINE", None)
    packages = VENV_PACKAGES + LIBVIRT_PACKAGES + TEST_PACKAGES
    return prepare(Place("test"), packages, ("dev.txt", "libvirt.txt"))


def test() -> int:
    """Every test there is; PYTEST_ARGS narrows."""
    runner = prepare_tests()
    # One group of the QEMU tests (see tests/conftest.py), which therefore run one after another.
    pytest = ["python", "-m", "pytest", "-n", "logical", "--maxprocesses", "4", "--dist", "loadgroup"]
    arguments = shlex.split(os.environ.get("PYTEST_ARGS", ""))
    return _run_to_the_last(runner, [*pytest, *arguments], STILLFRAME_TEST_ALL="1")


def kill_matrix() -> int:
    """Whatever can die or stop, at every point of every operation (docs/reliability.md); KILL_ARGS narrows."""
    runner = prepare_tests()
    return _run_to_the_last(runner, ["python", "-m", "tests.kill", *shlex.split(os.environ.get("KILL_ARGS", ""))])


def _run_to_the_last(runner: Runner, command: list[str], **environment: str) -> int:
    # What a run that is interrupted leaves behind, machines too, becomes ours, and ends with us.
    processes.adopt_orphans()
    try:
        return runner.run(command, **environment)
    finally:
        processes.end(processes.descendants(os.getpid()), seconds=5)


def lint() -> int:
    """Everything that can be said of the code without running it."""
    runner = prepare_tests()
    failed = [words for words in LINT if runner.run(words.split(), **PRODUCTION if "--deploy" in words else {})]
    for words in failed:
        print(f"failed: {words}")
    return 1 if failed else 0


LINT = (
    "ruff check .",
    "ruff format --check .",
    "mypy .",
    "djlint --lint --quiet templates",
    "python manage.py makemigrations --check --dry-run",
    "python manage.py translations --check",
    "python manage.py check --deploy --fail-level WARNING",
)
PRODUCTION = {
    "STILLFRAME_ENV": "production",
    "SECRET_KEY": hashlib.sha512(b"only for the check of the settings").hexdigest(),
    "ALLOWED_HOSTS": "console.example.org",
    "DATABASE_URL": "postgres://stillframe@/stillframe",
    "REDIS_URL": "redis://localhost:6379/0",
    "ENGINES_FILE": "docs/engines.example.toml",
}


def clean_demo() -> int:
    """Remove everything `make run` made but Debian packages: domains, disks, rows, the virtualenv, the account."""
    place = Place("demo")
    lock(place)
    processes.end(processes.marked([place.base, place.sockets]), seconds=10)
    for directory in (place.base, place.sockets):
        shutil.rmtree(directory, ignore_errors=True)
    place.lock.unlink()
    print(f"Removed {place.base} and {place.sockets}.")
    if ROOT:
        try:
            place.base.parent.rmdir()
            HOME.rmdir()
        except OSError:
            return 0  # there is something of the tests, or of another checkout
        subprocess.run(["userdel", ACCOUNT], check=False)
    return 0


VERBS = {"run": run, "test": test, "kill-matrix": kill_matrix, "lint": lint, "clean-demo": clean_demo}


def main() -> NoReturn:
    if sys.version_info < (3, 11):  # noqa: UP036 - any python3 may be asked to run this
        sys.exit("Stillframe needs Python 3.11 or newer.")
    try:
        sys.exit(VERBS[sys.argv[1]]())
    except Refused as refused:
        sys.exit(str(refused))


if __name__ == "__main__":
    main()
