#!/usr/bin/env python3
"""Puts the pinned ONNX Runtime shared library where the build and the tests look for it.

Downloads the wheel that scripts/onnxruntime-requirements.txt pins (pip refuses
any other bytes), takes the shared library out of it, checks the library's own
SHA-256 and writes it into target/onnxruntime/ and next to the binary. Nothing
is downloaded when a library with the right digest is already there.

Only Python's standard library and pip are needed; the wheel is never installed.
"""

import argparse
import hashlib
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import zipfile

LIBRARY = "libonnxruntime.so.1.32.0"
# The same digests are compiled into the engine (crates/engine/src/library.rs).
LIBRARY_SHA256 = {
    "x86_64": "6c1585d1bbf45b0712ea4a21b705c5fcb4ba04ff2e30f1fbf81a49faf658638f",
    "aarch64": "49852228a93995158b2a813d4df487d47a1b76b0eaa894507ef49e91b6d7954a",
}
REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


def main() -> int:
    arguments = parse_arguments()
    expected = LIBRARY_SHA256.get(arguments.architecture)
    if expected is None:
        print(f"no pinned ONNX Runtime for {arguments.architecture}", file=sys.stderr)
        return 1

    kept = arguments.target / "onnxruntime" / LIBRARY
    if digest_of_file(kept) != expected:
        place(download_library(arguments.architecture, expected), kept)
        print(f"{kept}: fetched", file=sys.stderr)

    beside_binary = arguments.target / "release" / LIBRARY
    if digest_of_file(beside_binary) != expected:
        place(kept.read_bytes(), beside_binary)
        print(f"{beside_binary}: placed", file=sys.stderr)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--target",
        type=pathlib.Path,
        default=pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target")),
        help="cargo's target folder (default: target/ of this checkout)",
    )
    parser.add_argument(
        "--architecture", choices=sorted(LIBRARY_SHA256), default=platform.machine()
    )
    return parser.parse_args()


def download_library(architecture: str, expected: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                sys.executable, "-m", "pip", "download",
                "--quiet", "--disable-pip-version-check",
                "--no-deps", "--only-binary=:all:", "--require-hashes",
                "--python-version", "3.11", "--implementation", "cp", "--abi", "cp311",
                "--platform", f"manylinux_2_28_{architecture}",
                "--dest", folder,
                "--requirement", str(REPOSITORY / "scripts" / "onnxruntime-requirements.txt"),
            ],
            check=True,
        )
        (wheel,) = pathlib.Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            library = archive.read(f"onnxruntime/capi/{LIBRARY}")
    found = hashlib.sha256(library).hexdigest()
    if found != expected:
        sys.exit(f"{LIBRARY} has SHA-256 {found}, not the pinned {expected}")
    return library


def digest_of_file(path: pathlib.Path) -> str | None:
    if not path.is_file():
        return None
    return hashlib.sha256(path.read_bytes()).hexdigest()


def place(library: bytes, path: pathlib.Path) -> None:
    """Writes beside the destination and renames: a reader never sees half a library."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as temporary:
        try:
            temporary.write(library)
            temporary.flush()
            os.chmod(temporary.name, 0o755)
            os.replace(temporary.name, path)
        except BaseException:
            os.unlink(temporary.name)
            raise


if __name__ == "__main__":
    sys.exit(main())
