"""What a figure was taken on."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def _field(path: str, key: str) -> str:
    try:
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            if line.startswith(key):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return "unknown"


def filesystem(folder: Path) -> str:
    """Return the type of the file system that holds `folder`."""
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _, mount, name, *_ = line.split()
        inside = str(folder.resolve()).startswith(mount.rstrip("/") + "/")
        if inside and len(mount) > len(best):
            best, kind = mount, name
    return kind


def describe(folder: Path) -> dict[str, object]:
    """Return processor, cores, memory, kernel, file system and how busy the machine was."""
    memory = _field("/proc/meminfo", "MemTotal").split()[0]
    return {
        "processor": _field("/proc/cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(int(memory) * 1024 / 1e9, 1) if memory.isdigit() else memory,
        "kernel": platform.release(),
        "filesystem": filesystem(folder),
        "load_at_start": round(os.getloadavg()[0], 2),
    }
