"""The machine by its features: what another must have for the figures to be comparable."""

import os
import platform
from importlib import metadata
from pathlib import Path

import psutil

FEATURES = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
)
PACKAGES = (
    "torch", "openvino", "onnxruntime", "ultralytics", "fastapi", "uvicorn", "litserve", "ray",
)  # fmt: skip


def describe() -> dict[str, str]:
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = {
        name.strip(): value.strip()
        for name, _, value in (line.partition(":") for line in info.split("\n\n")[0].splitlines())
    }
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return {
        "processor": f"{fields.get('model name', platform.machine())}, {os.cpu_count()} cores",
        "features": ", ".join(name for name in FEATURES if name in flags) or "none of AVX2, AVX-512, AMX",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "versions": ", ".join([f"Python {platform.python_version()}", *_versions()]),
    }


def _versions() -> list[str]:
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return found
