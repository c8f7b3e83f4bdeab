"""A tiny bootable Linux and its data disks, made without root, loop devices or mounts.

The guest is Debian's cloud kernel, busybox, the QEMU guest agent and GRUB, taken from packages that are fetched and
unpacked but never installed. ``mke2fs -d`` fills file systems in place; boot sector, partition table and
initramfs are a few lines each, below. Files that lie in the guest as they are: ``rootfs/`` beside this module.

Needs amd64, apt's package lists (the first time), gcc with a static libc, e2fsprogs and qemu-utils.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

HERE = Path(__file__).parent
MIB = 1 << 20
SECTOR = 512
# Where the only partition begins; everything before it is free for GRUB.
PARTITION = 1 * MIB

PACKAGES = (
    "busybox-static",
    "qemu-guest-agent",
    "grub-pc-bin",
    "grub-common",
    # The libraries that qemu-ga and grub-mkimage are linked to.
    "libc6",
    "libdevmapper1.02.1",
    "libglib2.0-0",
    "liblzma5",
    "libnuma1",
    "libpcre2-8-0",
    "libselinux1",
    "libudev1",
    "liburing2",
)
# In the order of their dependencies: the initramfs has no modprobe. The last two make the power button work.
MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "evdev",
    "button",
)
# Of the root file system, beside those in rootfs/.
DIRECTORIES = ("bin", "boot", "dev", "lib", "lib64", "proc", "root", "run", "srv", "sys", "tmp", "usr/sbin", "var")


class GuestError(Exception):
    """A tool failed while a guest was made; the text has the command and what it said."""


def build_guest(
    target: Path,
    cache: Path,
    *,
    size: int = 512 * MIB,
    format: str = "qcow2",
    hostname: str = "tiny",
    fstab: str = "",
    counter: str = "",
    files: Mapping[str, bytes] | None = None,
) -> None:
    """Make ``target``, a system disk of ``size`` bytes that boots to a root shell on the serial console.

    ``cache`` keeps the unpacked packages for later builds, which then need no network. ``fstab``: lines for other
    disks, mounted at boot (their mount points are made). ``counter``: arguments of ``counter.c``, started at boot.
    ``files``: more files by absolute path. ``target`` is replaced, and whole at any time. Raises ``GuestError``.
    """
    debian = _debian(cache)
    with _workshop(target) as work:
        root = work / "root"
        _lay_out(root, debian)
        _run("gcc", "-O2", "-Wall", "-static", "-o", root / "bin/counter", HERE / "counter.c")
        texts = {
            "/etc/hostname": f"{hostname}\n",
            "/etc/fstab": f"/dev/vda1 / ext4 defaults 0 1\n{fstab}",
            "/etc/counter": counter,
        }
        _write(root, {path: text.encode() for path, text in texts.items()})
        _write(root, files or {})
        for line in fstab.splitlines():
            (root / line.split()[1].lstrip("/")).mkdir(parents=True, exist_ok=True)
        _write(root, {"/boot/initrd.img": _initramfs(debian)})
        shutil.copy(_only(debian, "boot/vmlinuz-*"), root / "boot/vmlinuz")

        raw = work / "raw"
        _file_system(raw, root, size=size, offset=PARTITION)
        _make_bootable(raw, _grub(debian, work), debian)
        _finish(raw, target, format)


def data_disk(
    target: Path, *, uuid: str, size: int, format: str = "qcow2", files: Mapping[str, bytes] | None = None
) -> None:
    """Make ``target``, a disk of ``size`` bytes that is one ext4 file system with this UUID and these files.

    There is no partition table. ``target`` is replaced, and whole at any time. Raises ``GuestError``.
    """
    with _workshop(target) as work:
        root = work / "root"
        root.mkdir()
        _write(root, files or {})
        _file_system(work / "raw", root, size=size, uuid=uuid)
        _finish(work / "raw", target, format)


@contextmanager
def _workshop(target: Path) -> Iterator[Path]:
    """A directory beside ``target``, gone afterwards; what a killed run left in it is cleared first."""
    work = target.with_name(target.name + ".making")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        yield work
    finally:
        shutil.rmtree(work)


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    # apt-cache's words are read below, so not in the user's language; and mke2fs is not on an ordinary user's PATH.
    env = os.environ | {"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"}
    words = " ".join(map(str, command))
    try:
        done = subprocess.run(
            command, check=False, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    except FileNotFoundError as error:
        raise GuestError(f"{error.filename} is not there, needed for: {words}") from error
    if done.returncode:
        raise GuestError(f"{words} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _only(tree: Path, pattern: str) -> Path:
    found = list(tree.glob(pattern))
    if len(found) != 1:
        raise GuestError(f"{len(found)} files match {pattern} in {tree}, expected one")
    return found[0]


def _debian(cache: Path) -> Path:
    """The unpacked packages. Fetched once; any account may do it, no lock of apt is taken."""
    # Another list of packages is another tree.
    tree = cache / f"debian-{sha256(' '.join(PACKAGES).encode()).hexdigest()[:8]}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        # Whoever comes second waits, and finds it made.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not tree.is_dir():
            with _workshop(tree) as work:
                _fetch(work, work / "tree")
                (work / "tree").rename(tree)
    return tree


def _fetch(packages: Path, tree: Path) -> None:
    meta = _run("apt-cache", "depends", "linux-image-cloud-amd64")
    kernel = [line.split()[1] for line in meta.splitlines() if "Depends: linux-image-" in line]
    # As root, apt would give the download to an account that cannot write here, and warn.
    _run("apt-get", "-o", "APT::Sandbox::User=root", "download", *kernel, *PACKAGES, cwd=packages)
    for package in sorted(packages.glob("*.deb")):
        _run("dpkg-deb", "-x", package, tree)


def _libraries(debian: Path) -> str:
    return f"{debian}/lib/x86_64-linux-gnu:{debian}/usr/lib/x86_64-linux-gnu"


def _loader(debian: Path) -> Path:
    # lib64/ld-linux-x86-64.so.2 is an absolute link to it.
    return debian / "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"


def _lay_out(root: Path, debian: Path) -> None:
    """Everything of the root file system that is the same in every guest."""
    shutil.copytree(HERE / "rootfs", root)
    for directory in DIRECTORIES:
        (root / directory).mkdir(parents=True)
    (root / "var/run").symlink_to("/run")

    shutil.copy(debian / "bin/busybox", root / "bin")
    for applet in _run(debian / "bin/busybox", "--list").split():
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    (root / "sbin/init").symlink_to("../bin/busybox")

    agent = debian / "usr/sbin/qemu-ga"
    shutil.copy(agent, root / "usr/sbin")
    shutil.copy(_loader(debian), root / "lib64")
    linked = _run(_loader(debian), "--list", "--library-path", _libraries(debian), agent)
    for line in linked.splitlines():
        match line.split():
            case [name, "=>", "not", "found"]:
                raise GuestError(f"qemu-ga needs {name}, which is in none of the packages")
            case [name, "=>", path, _] if name.startswith("lib"):
                shutil.copy(path, root / "lib" / name)


def _write(root: Path, files: Mapping[str, bytes]) -> None:
    for path, content in files.items():
        file = root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def _initramfs(debian: Path) -> bytes:
    files = {
        "init": (HERE / "initramfs.sh").read_bytes(),
        "bin/busybox": (debian / "bin/busybox").read_bytes(),
        "modules/order": "\n".join(MODULES).encode(),
    }
    for module in MODULES:
        files[f"modules/{module}.ko"] = _only(debian, f"lib/modules/*/kernel/**/{module}.ko").read_bytes()
    directories = ("bin", "dev", "modules", "root")
    return b"".join(
        [
            *(_cpio(number, name, stat.S_IFDIR | 0o755) for number, name in enumerate(directories, 1)),
            *(_cpio(number, name, stat.S_IFREG | 0o755, body) for number, (name, body) in enumerate(files.items(), 10)),
            _cpio(0, "TRAILER!!!", 0),
        ]
    )


def _cpio(number: int, name: str, mode: int, body: bytes = b"") -> bytes:
    """One member of a "newc" archive: 13 hexadecimal fields, the name and the body, each padded to four bytes."""
    path = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(body), 0, 0, 0, 0, len(path), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
    return head + bytes(-len(head) % 4) + body + bytes(-len(body) % 4)


def _file_system(raw: Path, root: Path, *, size: int, offset: int = 0, uuid: str = "random") -> None:
    """Make the sparse file ``raw`` of ``size`` bytes, with an ext4 holding ``root`` from ``offset`` to its end."""
    with raw.open("wb") as file:
        file.truncate(size)
    # GRUB's ext2 module knows neither feature. Inode tables are written now, or the guest would do it when first
    # mounted and its disks would not be quiet; they and the journal are small, as what is written takes room.
    extended = f"offset={offset},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0"
    layout = ("-b", "4096", "-i", "65536", "-J", "size=4", "-O", "^64bit,^metadata_csum_seed")
    options = ("-q", "-F", "-t", "ext4", *layout, "-U", uuid, "-E", extended)
    _run("mke2fs", *options, "-d", root, raw, f"{(size - offset) >> 10}k")


def _grub(debian: Path, work: Path) -> bytes:
    """GRUB's second stage with its configuration built in, as ``grub-install`` would put it after the MBR."""
    core = work / "core.img"
    images = debian / "usr/lib/grub/i386-pc"
    mkimage = (_loader(debian), "--library-path", _libraries(debian), debian / "usr/bin/grub-mkimage")
    options = ("-d", images, "-O", "i386-pc", "-p", "/boot/grub", "-c", HERE / "grub.cfg", "-o", core)
    _run(*mkimage, *options, "biosdisk", "part_msdos", "ext2", "linux", "boot")
    return core.read_bytes()


def _make_bootable(raw: Path, core: bytes, debian: Path) -> None:
    """Write the MBR with its one partition, and GRUB's second stage behind it, where boot.img looks by default."""
    if SECTOR + len(core) > PARTITION:
        raise GuestError("GRUB does not fit before the partition")
    first, sectors = PARTITION // SECTOR, (raw.stat().st_size - PARTITION) // SECTOR
    mbr = bytearray((debian / "usr/lib/grub/i386-pc/boot.img").read_bytes())
    # As grub-bios-setup does for hard disks: do not second-guess the drive number the BIOS gives.
    mbr[0x66:0x68] = b"\x90\x90"
    mbr[440:444] = os.urandom(4)
    mbr[446:510] = struct.pack("<B3sB3sII48x", 0x80, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff", first, sectors)
    mbr[510:512] = b"\x55\xaa"
    with raw.open("r+b") as file:
        file.write(mbr + core)


def _finish(raw: Path, target: Path, format: str) -> None:
    """Put the disk into its place under its declared format, in one rename."""
    disk = raw
    if format != "raw":
        disk = raw.with_name("disk")
        _run("qemu-img", "convert", "-f", "raw", "-O", format, raw, disk)
    disk.rename(target)
