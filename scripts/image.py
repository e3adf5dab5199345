#!/usr/bin/env python3
"""Makes the image of a virtual machine that does nothing but `occlude serve`.

Writes into target/image/ what a hypervisor starts directly: the firmware, the kernel
and the initial file system with the production binary in it. The packages that
image/packages.txt pins are downloaded from this machine's Debian mirror, or taken
from --packages, and refused unless their SHA-256 is right. The same inputs give the
same bytes: no time, user or order of this machine goes in, and nothing is compressed.

Only Python's standard library is needed.
"""

import argparse
import hashlib
import io
import lzma
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from dataclasses import dataclass, field

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
PINS = REPOSITORY / "image" / "packages.txt"
LIBRARIES = "lib/x86_64-linux-gnu"
ONNXRUNTIME = "libonnxruntime.so.1.32.0"
# The processor in an ELF header (e_machine).
ELF_X86_64 = b"\x3e\0"

# What is taken out of which package, and where it goes.
FIRMWARE = {
    "ovmf-amdsev": ("usr/share/ovmf/OVMF.amdsev.fd", "firmware-snp.fd"),
    "ovmf-generic": ("usr/share/ovmf/OVMF.fd", "firmware-tpm.fd"),
}
SYSTEM = {
    "busybox-static": {"usr/bin/busybox": "bin/busybox"},
    "libc6": {
        "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2": "lib64/ld-linux-x86-64.so.2",
        **{
            f"usr/{LIBRARIES}/{name}": f"{LIBRARIES}/{name}"
            for name in ("libc.so.6", "libdl.so.2", "libm.so.6", "libpthread.so.0", "librt.so.1")
        },
    },
    "libgcc-s1": {f"usr/{LIBRARIES}/libgcc_s.so.1": f"{LIBRARIES}/libgcc_s.so.1"},
    "libstdc++6": {f"usr/{LIBRARIES}/libstdc++.so.6.0.33": f"{LIBRARIES}/libstdc++.so.6"},
}
# In the order in which they can be loaded.
MODULES = (
    "fs/configfs/configfs",
    "drivers/virt/coco/tsm",
    "drivers/virt/coco/sev-guest/sev-guest",
    "drivers/virt/coco/tdx-guest/tdx-guest",
    "drivers/block/virtio_blk",
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
)
AUTHORITIES = "etc/ssl/certs/ca-certificates.crt"


class ImageError(Exception):
    """Why there is no image, in words for whoever asked for one."""


@dataclass
class FileSystem:
    """An initial file system in the making: path to content and whether it is a program."""

    files: dict[str, tuple[bytes, bool]] = field(default_factory=dict)

    def add(self, path: str, content: bytes, *, program: bool = False) -> None:
        self.files[path] = (content, program)

    def archive(self) -> bytes:
        """The archive, in the "newc" form of the kernel's documentation
        (Documentation/driver-api/early-userspace/buffer-format.rst)."""
        folders = {
            str(parent)
            for path in self.files
            for parent in pathlib.PurePosixPath(path).parents
            if str(parent) != "."
        }
        entries = [(folder, 0o040755, b"") for folder in folders]
        entries += [
            (path, 0o100755 if program else 0o100644, content)
            for path, (content, program) in self.files.items()
        ]
        out = io.BytesIO()
        # A folder sorts before what lies in it.
        for number, (path, mode, content) in enumerate(sorted(entries), start=1):
            write_entry(out, path, content, number=number, mode=mode)
        write_entry(out, "TRAILER!!!", b"", number=0, mode=0)
        return out.getvalue()


def write_entry(out: io.BytesIO, path: str, content: bytes, *, number: int, mode: int) -> None:
    name = path.encode() + b"\0"
    links, nobody, no_time, no_device = 1, 0, 0, 0
    fields = [number, mode, nobody, nobody, links, no_time, len(content)]
    fields += [no_device, no_device, no_device, no_device, len(name), 0]
    out.write(b"070701" + b"".join(b"%08X" % value for value in fields) + name)
    out.write(bytes(-out.tell() % 4))
    out.write(content)
    out.write(bytes(-out.tell() % 4))


def main() -> int:
    arguments = parse_arguments()
    try:
        make(arguments)
    except ImageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def parse_arguments() -> argparse.Namespace:
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--binary",
        type=pathlib.Path,
        default=target / "production" / "occlude",
        help="the binary, with ONNX Runtime beside it (default: that of `make release`)",
    )
    parser.add_argument(
        "--packages",
        type=pathlib.Path,
        default=target / "packages",
        help="where packages are kept, and are found if they are there (default: target/packages)",
    )
    parser.add_argument(
        "--mirror", help="a mirror of Debian's archive (default: what apt is configured with)"
    )
    parser.add_argument("-o", "--output", type=pathlib.Path, default=target / "image")
    return parser.parse_args()


def make(arguments: argparse.Namespace) -> None:
    packages = {}
    for pool_path, digest in pins():
        name = pool_path.rpartition("/")[2].partition("_")[0]
        package = fetch(pool_path, digest, arguments.packages, arguments.mirror)
        packages["linux" if name.startswith("linux-image-") else name] = unpacked(package)

    written = {place: packages[package][path] for package, (path, place) in FIRMWARE.items()}
    [written["kernel"]] = (
        content for path, content in packages["linux"].items() if path.startswith("boot/vmlinuz-")
    )
    written["initrd"] = file_system(packages, arguments.binary).archive()

    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, content in written.items():
        path = arguments.output / name
        partial = path.with_name(f".{name}")
        partial.write_bytes(content)
        partial.replace(path)
        print(f"{hashlib.sha256(content).hexdigest()}  {path} ({len(content) >> 20} MiB)")


def file_system(packages: dict[str, dict[str, bytes]], binary: pathlib.Path) -> FileSystem:
    made = FileSystem()
    for package, paths in SYSTEM.items():
        for path, place in paths.items():
            made.add(place, packages[package][path], program=True)
    for number, module in enumerate(MODULES):
        [compressed] = (
            content
            for path, content in packages["linux"].items()
            if path.endswith(f"/kernel/{module}.ko.xz")
        )
        name = module.rpartition("/")[2]
        made.add(f"lib/modules/{number:02}-{name}.ko", lzma.decompress(compressed))
    certificates = sorted(
        (path, content)
        for path, content in packages["ca-certificates"].items()
        if path.startswith("usr/share/ca-certificates/mozilla/")
    )
    made.add(AUTHORITIES, b"".join(content for _, content in certificates))
    made.add("init", (REPOSITORY / "image" / "init").read_bytes(), program=True)
    made.add("bin/address", (REPOSITORY / "image" / "address").read_bytes(), program=True)
    try:
        program = binary.read_bytes()
        made.add(f"occlude/{ONNXRUNTIME}", binary.with_name(ONNXRUNTIME).read_bytes())
    except OSError as error:
        raise ImageError(f"{error.filename}: {error.strerror}; `make release` builds it") from error
    check_runs(program, packages["libc6"], binary)
    made.add("occlude/occlude", program, program=True)
    return made


def check_runs(program: bytes, libc: dict[str, bytes], path: pathlib.Path) -> None:
    """Refuses a binary that the image's processor or C library could not run."""
    if program[:4] != b"\x7fELF" or program[18:20] != ELF_X86_64:
        raise ImageError(f"{path}: not a program for x86-64, which the image is for")
    needed = newest_glibc(program)
    provided = newest_glibc(libc[f"usr/{LIBRARIES}/libc.so.6"])
    if needed > provided:
        versions = [".".join(map(str, version)) for version in (needed, provided)]
        raise ImageError(
            f"{path}: it needs glibc {versions[0]}, the image has {versions[1]}: build it on a\n"
            f"system that is not newer than the image, or pin a newer libc6 in {PINS}"
        )


def newest_glibc(program: bytes) -> tuple[int, ...]:
    named = re.findall(rb"\0GLIBC_(\d+)\.(\d+)", program)
    return max((int(major), int(minor)) for major, minor in named)


def pins() -> list[tuple[str, str]]:
    lines = (line.split() for line in PINS.read_text().splitlines())
    return [(line[0], line[1]) for line in lines if line and line[0] != "#"]


def fetch(pool_path: str, digest: str, folder: pathlib.Path, mirror: str | None) -> bytes:
    """One package, from the folder or the mirror, with the right digest or not at all."""
    kept = folder / pool_path.rpartition("/")[2]
    if kept.is_file():
        content = kept.read_bytes()
    else:
        address = f"{(mirror or configured_mirror()).rstrip('/')}/pool/{pool_path}"
        print(f"downloading {kept.name}", file=sys.stderr)
        try:
            with urllib.request.urlopen(address, timeout=120) as answer:
                content = answer.read()
        except (urllib.error.URLError, OSError) as error:
            raise ImageError(
                f"{address}: {error}\n"
                "Debian drops old versions from its mirrors. Get the file from Debian's snapshot\n"
                f"archive and put it into {folder}, or pin a newer version in {PINS}"
            ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise ImageError(f"{kept.name}: its SHA-256 is {found}, {PINS} has {digest}")
    if not kept.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(content)
    return content


def configured_mirror() -> str:
    command = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        said = ""
    for line in said.splitlines():
        words = line.split()
        if words[:2] == ["Debian", "Debian"]:
            return words[2]
    raise ImageError("this machine has no Debian mirror configured: give one with --mirror URL")


def unpacked(package: bytes) -> dict[str, bytes]:
    """The files of a Debian package (deb(5)): an `ar` archive with a tar archive in it."""
    at = len(b"!<arch>\n")
    while at < len(package):
        header = package[at : at + 60]
        name, length = header[:16].decode().strip().rstrip("/"), int(header[48:58])
        content = package[at + 60 : at + 60 + length]
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(content)) as files:
                return {
                    entry.name.removeprefix("./"): files.extractfile(entry).read()
                    for entry in files
                    if entry.isfile()
                }
        at += 60 + length + length % 2
    raise ImageError("a package without files")


if __name__ == "__main__":
    sys.exit(main())
