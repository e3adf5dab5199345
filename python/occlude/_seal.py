"""Sealing, by the ``occlude`` program."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx

from occlude.guard import Guard


class OccludeError(Exception):
    """What the program refused, in its own words."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        #: 1 failed, 2 used wrongly, 3 refused by a policy or a verification, 4 not available.
        self.exit_code = exit_code


@dataclass(frozen=True)
class Sealed:
    """A sealed model."""

    path: Path
    id: str
    version: int
    #: The owner's public key.
    owner: str
    #: The digest of its header, which policies and brokers name it by.
    digest: str


def seal(
    model: str | os.PathLike[str] | onnx.ModelProto,
    output: str | os.PathLike[str],
    key: str | os.PathLike[str],
    *,
    id: str | None = None,
    version: int = 1,
    guard: Guard | None = None,
    program: str | os.PathLike[str] | None = None,
) -> Sealed:
    """Encrypts and signs a model.

    ``model`` is an ONNX file, whose external data is found beside it, or a model in memory.
    ``key`` is the file that ``occlude keygen`` made. ``id`` is the public name, random if
    left out. ``program`` is the ``occlude`` program: by default what ``OCCLUDE_BINARY``
    names, else the one on the path.

    Raises :class:`OccludeError` if the program refuses, :class:`FileNotFoundError` if there
    is none.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        if guard is not None and guard.misinformation is not None:
            loaded = model if isinstance(model, onnx.ModelProto) else onnx.load(model)
            onnx.save(guard.misinformation.attach(loaded), path)
        elif isinstance(model, onnx.ModelProto):
            onnx.save(model, path)
        else:
            path = Path(model)
        arguments = ["seal", str(path), "--output", os.fspath(output), "--key", os.fspath(key)]
        arguments += ["--version", str(version), "--json"]
        if id is not None:
            arguments += ["--id", id]
        if guard is not None:
            written = Path(folder, "guard.toml")
            written.write_text(guard.to_toml(), encoding="utf-8")
            arguments += ["--guard", str(written)]
        said = json.loads(run(arguments, program))
    return Sealed(Path(output), said["id"], said["version"], said["owner"], said["digest"])


def run(arguments: list[str], program: str | os.PathLike[str] | None = None) -> str:
    """Runs the program, and gives what it printed."""
    found = program or os.environ.get("OCCLUDE_BINARY") or shutil.which("occlude")
    if found is None:
        raise FileNotFoundError("there is no occlude on the path: name it with program= or OCCLUDE_BINARY")
    ended = subprocess.run([os.fspath(found), *arguments], capture_output=True, text=True)
    if ended.returncode != 0:
        last = ended.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise OccludeError(last[0].removeprefix("occlude: "), ended.returncode)
    return ended.stdout
