"""What the doctor checks, one function for each subject; `model_findings` checks the models. Nothing is written or
fetched.

A finding is one line: what was checked, what was seen, whether that is right, and what to do where it is not.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from dspy_toolkit.durable import is_private
from dspy_toolkit.errors import ToolkitError
from dspy_toolkit.lm.models.memory import size
from dspy_toolkit.printable import without_password
from dspy_toolkit.store import Frozen

if TYPE_CHECKING:
    from dspy_toolkit.lm.models.hardware import Hardware
    from dspy_toolkit.settings import Settings

SPARE_BYTES = 2 * 2**30
"""Free space under which a run may not get through: the converted model, caches and the database take about 1 GB."""
SHOWN = ("dspy", "gepa", "litellm", "llguidance", "mlflow", "mlx", "mlx-lm", "optuna", "prefect", "transformers")
REINSTALL = "Install dspy-toolkit again; in a clone, run `make setup`."
CONNECT_SECONDS = 2.0
ARROW = "  ← "
"""Between a setting's value and where it comes from."""


class Finding(Frozen):
    """One line of the doctor's report: what was checked, and what was seen."""

    subject: str
    """The part it belongs to: `packages`, `machine`, …"""
    name: str
    """What was checked."""
    value: str
    """What was seen."""
    state: Literal["ok", "note", "wrong"] = "ok"
    """`note`: it works, but could be better."""
    advice: str = ""
    """What to do, where it is not `ok`."""


def wrong(subject: str, name: str, value: str, advice: str) -> Finding:
    """Something to repair, and how."""
    return Finding(subject=subject, name=name, value=value, state="wrong", advice=advice)


def packages() -> Iterator[Finding]:
    """Python, and the installed versions against those that this library declares."""
    from packaging.requirements import Requirement

    yield Finding(subject="packages", name="python", value=platform.python_version())
    yield Finding(subject="packages", name="dspy-toolkit", value=importlib.metadata.version("dspy-toolkit"))
    extras = importlib.metadata.metadata("dspy-toolkit").get_all("Provides-Extra") or []
    lines = importlib.metadata.requires("dspy-toolkit") or []
    for requirement in sorted(map(Requirement, lines), key=lambda each: each.name):
        name, marker = requirement.name, requirement.marker
        by = [extra for extra in ("", *extras) if marker is None or marker.evaluate({"extra": extra})]
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if "" in by:  # packages of an extra are checked only where they are installed
                yield wrong("packages", name, "not installed", REINSTALL)
            continue
        if by and not requirement.specifier.contains(found, prereleases=True):
            yield wrong("packages", name, f"{found}, but {requirement.specifier} is needed", REINSTALL)
        elif by and name in SHOWN:
            yield Finding(subject="packages", name=name, value=found)


def machine(hardware: Hardware) -> Iterator[Finding]:
    """Chip, cores, memory, the device that MLX will use, and the BLAS."""
    from dspy_toolkit.lm.models.blas import INSTALL, preload

    found = {"metal": "an Apple GPU", "cuda": "a CUDA GPU", "cpu": "no GPU that MLX can use"}[hardware.device]
    seen = {
        "system": hardware.system,
        "chip": hardware.chip,
        "cores": str(hardware.cores),
        "memory": f"{size(hardware.memory_bytes)}, of which {size(hardware.available_bytes)} available "
        f"(limited by the {hardware.memory_limited_by})",
        "device": f"{hardware.device}: {found}",
    }
    if hardware.working_set_bytes is not None:
        seen["working set"] = (
            f"{size(hardware.working_set_bytes)} that the accelerator may hold, "
            f"of which {size(hardware.working_set_free_bytes or 0)} free"
        )
    if hardware.mps:
        seen["torch"] = "mps is available"
    for name, value in seen.items():
        yield Finding(subject="machine", name=name, value=value)
    blas = preload()
    about = " ".join(part for part in (blas.library, blas.path) if part)
    if blas.optimised or hardware.device != "cpu":
        yield Finding(subject="machine", name="BLAS", value=f"{about} ({blas.note})")
    else:
        yield Finding(subject="machine", name="BLAS", value=f"{about}: very slow", state="note", advice=INSTALL)


def home(settings: Settings, spare: int = SPARE_BYTES) -> Iterator[Finding]:
    """Where everything is kept, and whether there is room."""
    folder = settings.path()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    advice = "Make it writable, or set DSPY_TOOLKIT_HOME to a folder that is."
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        yield wrong("home", "folder", f"{folder} cannot be written", advice)
    else:
        made = "writable" if there == folder else "made by the first run"
        if there == folder and not is_private(folder):
            said, chmod = f"{folder} ({made}, and others may read it)", f"It holds rows in clear: `chmod 700 {folder}`."
            yield Finding(subject="home", name="folder", value=said, state="note", advice=chmod)
        else:
            yield Finding(subject="home", name="folder", value=f"{folder} ({made})")
    usage = shutil.disk_usage(there)
    free = f"{size(usage.free)} free of {size(usage.total)}"
    if usage.free < spare:
        yield wrong("home", "disk", free, f"Free some space: {size(spare)} are wanted.")
    else:
        yield Finding(subject="home", name="disk", value=free)


def tracking(settings: Settings) -> Iterator[Finding]:
    """MLflow's address, and whether something answers there."""
    address = urlsplit(settings.tracking_uri)
    shown = without_password(settings.tracking_uri)
    if address.scheme in ("http", "https") and address.hostname:
        try:
            port = address.port or (443 if address.scheme == "https" else 80)
            socket.create_connection((address.hostname, port), CONNECT_SECONDS).close()
        except (OSError, ValueError) as error:
            advice = "Start the server (`mlflow server`), or correct registry.tracking_uri."
            yield wrong("tracking", "MLflow", f"{shown}: {error}", advice)
            return
    elif address.scheme == "sqlite" and settings.registry.tracking_uri is None:
        shown += "" if settings.path("mlflow.db").exists() else " (made by the first run)"
    yield Finding(subject="tracking", name="MLflow", value=shown)
    yield Finding(subject="tracking", name="experiment", value=settings.registry.experiment)


def lease(settings: Settings, device: str) -> Iterator[Finding]:
    """Whether another process holds the accelerator, and which."""
    from dspy_toolkit.lm.models.lease import lease_path
    from dspy_toolkit.locks import take

    path = lease_path(device)
    then = "would wait for it" if settings.lm.lease == "wait" else "would run beside it"
    value = f"{device} is free"
    if path.exists():
        try:
            if (taken := take(path)) is not None:
                taken.release()
            else:
                value = f"{device} is held by {_holder(path)}; this process {then} (lm.lease is {settings.lm.lease})"
        except OSError as error:
            yield wrong("lease", "accelerator", f"{path}: {error}", f"Remove {path}.")
            return
    yield Finding(subject="lease", name="accelerator", value=value)


def configuration(settings: Settings) -> Iterator[Finding]:
    """Every setting in force; the value says where it comes from when it is not the default."""
    from dspy_toolkit.configuration import settings_in_force

    for name, value, source in settings_in_force(settings):
        yield Finding(subject="settings", name=name, value=f"{value}{ARROW}{source}" if source else value)


def projects(settings: Settings) -> Iterator[Finding]:
    """The projects that have a name here: whether each can be loaded, and has its data."""
    from dspy_toolkit.project import load_named, project_names

    names = project_names(settings)
    if not names:
        yield Finding(subject="projects", name="none", value="no installed project; a .toml file works without")
    for name in names:
        try:
            project = load_named(name, settings)
            project.build()
        except ToolkitError as error:
            yield wrong("projects", name, "cannot be loaded", str(error))
            continue
        if project.data_path.is_file():
            yield Finding(subject="projects", name=name, value=project.summary)
        else:
            yield wrong("projects", name, f"{project.data_path} is missing", "Bring it back, or correct the project.")


def _holder(path: Path) -> str:
    """The process that holds a lock file, where the system can say (Linux)."""
    try:
        inode = path.stat().st_ino
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if fields[5].rpartition(":")[2] == str(inode) and fields[4] != "-1":
                command = Path(f"/proc/{fields[4]}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                return f"process {fields[4]} ({command.strip()[:60]})"
    except (OSError, IndexError):
        pass  # another system, or the process has just ended
    return f"another process ({path})"
