"""How is the kernel compiled and loaded? On first use, for this machine's instruction set.

The library is stored in the user's cache folder under a name made from the source, the compiler
and the flags, so that no stale library is loaded. Compiling needs a C++17 compiler; the library
does not link against torch. `CXX` sets the compiler, `XDG_CACHE_HOME` the cache folder, and
`DITPRUNE_CXXFLAGS` adds flags.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from ditprune.errors import KernelError

SOURCES = Path(__file__).parent / "kernel"
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-pthread")


_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx2", "-mfma")
_PAIRS = "avx512-bf16"  # the only set that takes bfloat16 weights in pairs
# The floats in one vector, and the compiler's flags; the widest first.
INSTRUCTION_SETS: dict[str, tuple[int, tuple[str, ...]]] = {
    _PAIRS: (16, (*_AVX512, "-mavx512bf16")),
    "avx512": (16, _AVX512),
    "avx2": (8, ("-mavx2", "-mfma")),
    "plain": (4, ()),  # NEON or SSE, as the compiler assumes
}

_POINTER, _INT, _INT64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
# As in kernel.cpp.
_ARGUMENTS = (
    *(_POINTER, _INT, _POINTER, _POINTER, _POINTER, _POINTER, _INT64, _INT64, _INT64),
    *(_POINTER, _INT, _INT64),
    *(_POINTER, _INT64, _INT, _INT),
)


def instruction_set() -> str:
    """The widest set that torch finds on this machine and that the compiler supports."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability == "AVX512" and _has_bf16():
        return _PAIRS
    return {"AVX512": "avx512", "AVX2": "avx2"}.get(capability, "plain")


def _has_bf16() -> bool:
    """Whether there is an instruction for products of bfloat16 pairs; older torch cannot tell."""
    known: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    try:
        return bool(known.get("avx512_bf16")) and _makes_pairs(*_compiler())
    except KernelError:
        return False


@functools.cache
def _makes_pairs(*compiler: str) -> bool:
    """Whether a compiler takes the flags (GCC from version 10 on) and its assembler the
    instruction."""
    command = [*compiler, *INSTRUCTION_SETS[_PAIRS][1], "-c", "-x", "c++", "-", "-o", os.devnull]
    return _run(command, 'asm("vdpbf16ps %zmm0, %zmm1, %zmm2");').returncode == 0


def machine_takes_pairs() -> bool:
    """Whether the kernel of this machine takes bfloat16 weights in pairs."""
    return instruction_set() == _PAIRS


@functools.cache
def load_kernel(name: str | None = None) -> Callable[..., int]:
    """The kernel's function for an instruction set, compiled if it is not in the cache.

    Raises KernelError.
    """
    path = _build(name or instruction_set())
    try:
        function = ctypes.CDLL(str(path)).ditprune_multiply
    except OSError as error:
        raise KernelError(
            f"{path}: the compiled kernel does not load ({error}); delete it, or, where no library "
            "can be loaded from its folder (noexec), set XDG_CACHE_HOME to another"
        ) from None
    function.argtypes, function.restype = _ARGUMENTS, ctypes.c_int
    return function


def _build(name: str) -> Path:
    lanes, flags = INSTRUCTION_SETS[name]
    compiler = _compiler()
    extra = shlex.split(os.environ.get("DITPRUNE_CXXFLAGS", ""))
    command = [*compiler, *FLAGS, f"-DLANES={lanes}", *flags, *extra, str(SOURCES / "kernel.cpp")]
    library = _cache_folder() / f"kernel-{name}-{_key(compiler, command)}.so"
    try:
        if not library.exists():
            with tempfile.TemporaryDirectory(dir=library.parent) as beside:
                part = Path(beside) / library.name
                _compile(compiler, [*command, "-o", str(part), "-ldl"])
                part.replace(library)
    except OSError as error:
        raise _no_cache(library.parent, error) from None
    return library


def _compile(compiler: list[str], command: list[str]) -> None:
    compiled = _run(command)
    if compiled.returncode:
        message = compiled.stderr.strip() or f"exit status {compiled.returncode}"
        first_error = next((line for line in message.splitlines() if "error" in line), message)
        raise KernelError(
            f"sparse kernel: {shlex.join(compiler)} cannot compile it ({first_error}); "
            "set CXX to a C++17 compiler"
        )


def _compiler() -> list[str]:
    given = shlex.split(os.environ.get("CXX", ""))
    path = next(filter(None, map(shutil.which, given[:1] or COMPILERS)), None)
    if path is None:
        looked_for = f"CXX={given[0]}" if given else ", ".join(COMPILERS)
        raise KernelError(
            f"sparse kernel: no C++ compiler (looked for {looked_for}); install one, or stay dense"
        )
    return [path, *given[1:]]


def _key(compiler: list[str], command: list[str]) -> str:
    version = _run([*compiler, "--version"]).stdout
    digest = hashlib.sha256("\0".join([version, *command[:-1]]).encode())
    for source in sorted(file for file in SOURCES.iterdir() if file.suffix in (".cpp", ".h")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _run(command: list[str], source: str = "") -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    except OSError as error:
        raise KernelError(f"sparse kernel: {command[0]} does not run ({error})") from None


def _cache_folder() -> Path:
    """A folder that no other user can write into, since its files are run. Raises KernelError."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(root or "~/.cache", "ditprune")
    try:
        folder = folder if root else folder.expanduser()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError("not writable")
        about = folder.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        raise _no_cache(folder, error) from None
    if hasattr(os, "getuid") and about.st_uid != os.getuid():
        fault = f"belongs to user {about.st_uid}, expected {os.getuid()}"
    elif about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        fault = f"has mode {stat.S_IMODE(about.st_mode):03o}, which lets others write into it"
    else:
        return folder
    raise KernelError(
        f"sparse kernel: the cache {folder} {fault}, so a library there could be anyone's; "
        "delete the folder, or set XDG_CACHE_HOME to one of your own"
    )


def _no_cache(folder: Path, error: Exception) -> KernelError:
    return KernelError(
        f"sparse kernel: no cache at {folder} ({error}); set XDG_CACHE_HOME to a folder "
        "that can be written"
    )
