"""The kernel is compiled once, kept under a name of its own, and refused with a reason."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from ditprune.errors import KernelError
from ditprune.runtime import build
from ditprune.runtime.kernel_call import multiply
from ditprune.runtime.packed import pack
from sparse_products import SETS, assert_is_dense, draw


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty cache folder, a compiler in haste, and nothing loaded before or after."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("DITPRUNE_CXXFLAGS", "-O0")
    build.load_kernel.cache_clear()
    yield
    build.load_kernel.cache_clear()


def cached(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "ditprune").iterdir())


def counting_compiler(tmp_path: Path) -> Path:
    """A compiler that notes each call."""
    script = tmp_path / "cxx"
    compiler = shlex.join(build._compiler())
    script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nexec {compiler} "$@"\n')
    script.chmod(0o755)
    return script


def num_compiled(tmp_path: Path) -> int:
    return (tmp_path / "calls").read_text().count("kernel.cpp")


def test_it_is_compiled_once_and_kept(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CXX", str(counting_compiler(tmp_path)))
    build.load_kernel("plain")
    (library,) = cached(tmp_path)
    assert library.name.startswith("kernel-plain-")
    assert stat.S_IMODE(library.parent.stat().st_mode) == 0o700
    build.load_kernel("plain")
    build.load_kernel.cache_clear()
    build.load_kernel("plain")
    assert num_compiled(tmp_path) == 1


def test_other_flags_give_another_library(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CXX", str(counting_compiler(tmp_path)))
    for flags in ("-O0", "-O0 -DOTHER"):
        monkeypatch.setenv("DITPRUNE_CXXFLAGS", flags)
        build.load_kernel.cache_clear()
        build.load_kernel("plain")
    assert len(cached(tmp_path)) == num_compiled(tmp_path) == 2


def test_other_sources_give_another_library(tmp_path, monkeypatch) -> None:
    sources = tmp_path / "kernel"
    sources.mkdir()
    for source in build.SOURCES.iterdir():
        (sources / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr(build, "SOURCES", sources)
    build.load_kernel("plain")
    with (sources / "weight.h").open("a") as header:
        header.write("// changed\n")
    build.load_kernel.cache_clear()
    build.load_kernel("plain")
    assert len(cached(tmp_path)) == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_two_processes_at_once_do_not_disturb_each_other(tmp_path) -> None:
    code = """
import os
from ditprune.runtime import build
child = os.fork()
build.load_kernel("plain")
assert not child or os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=900)
    assert len(cached(tmp_path)) == 1


def test_what_does_not_compile_is_said_in_one_line_and_leaves_nothing(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("DITPRUNE_CXXFLAGS", "-DLANES=oops")
    with pytest.raises(KernelError, match=r"cannot compile it \(.*error.*\); set CXX") as caught:
        build.load_kernel("plain")
    assert "\n" not in str(caught.value)
    assert cached(tmp_path) == []


@pytest.mark.parametrize(
    ("variables", "match"),
    [
        pytest.param(
            {"CXX": "no-such-compiler"},
            "looked for CXX=no-such-compiler",
            marks=pytest.mark.no_compiler,
        ),
        pytest.param(
            {"PATH": "", "CXX": ""},
            r"looked for c\+\+, g\+\+, clang\+\+",
            marks=pytest.mark.no_compiler,
        ),
        ({"XDG_CACHE_HOME": "/dev/null"}, "no cache at /dev/null/ditprune"),
    ],
)
def test_a_missing_compiler_or_cache_is_said(variables, match, monkeypatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(KernelError, match=match):
        build.load_kernel("plain")


def test_a_library_that_does_not_load_is_said() -> None:
    library = build._build("plain")
    library.write_bytes(library.read_bytes()[:100])
    with pytest.raises(KernelError) as caught:
        build.load_kernel("plain")
    assert str(caught.value).startswith(f"{library}: the compiled kernel does not load")
    assert "; delete it" in str(caught.value)
    assert "(noexec), set XDG_CACHE_HOME" in str(caught.value)


def test_threads_of_its_own_where_torch_has_no_openmp(with_threads, monkeypatch) -> None:
    """The same product without the runtime that torch shares with it."""
    monkeypatch.setenv("DITPRUNE_CXXFLAGS", "-O0 -DGOMP_PARALLEL='\"no_such_function\"'")
    inputs, weight = torch.randn(300, 70), torch.randn(200, 70)
    with_threads(3, lambda: multiply(inputs, pack(weight), 200, None, "plain"))
    outputs = with_threads(3, lambda: multiply(inputs, pack(weight), 200, None, "plain"))
    torch.testing.assert_close(outputs, inputs @ weight.T, rtol=1e-5, atol=1e-4)


def test_a_folder_that_others_write_into_is_no_cache(tmp_path) -> None:
    folder = tmp_path / "cache" / "ditprune"
    folder.mkdir(parents=True)
    for mode in (0o775, 0o707):
        folder.chmod(mode)
        with pytest.raises(KernelError, match=rf"has mode {mode:o}.*; delete the folder, or set"):
            build.load_kernel("plain")
    assert cached(tmp_path) == []
    folder.chmod(0o755)
    build.load_kernel("plain")


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="files have no owners here")
def test_a_folder_of_another_user_is_no_cache(tmp_path, monkeypatch) -> None:
    build.load_kernel("plain")
    build.load_kernel.cache_clear()
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(KernelError, match=f"belongs to user {owner}, expected {owner + 1}"):
        build.load_kernel("plain")


def test_no_home_and_no_room_are_said(monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryDirectory", full)
        with pytest.raises(KernelError, match=r"no cache at .*No space left on device.*; set XDG"):
            build.load_kernel("plain")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where there is no home
    with pytest.raises(KernelError, match=r"no cache at ~/\.cache/ditprune .*; set XDG"):
        build.load_kernel("plain")


def test_an_assembler_without_products_of_pairs_leaves_single_weights(
    tmp_path, monkeypatch
) -> None:
    script = tmp_path / "cxx"
    script.write_text(
        '#!/bin/sh\ncase "$*" in *" -E "*) ;; *-mavx512bf16*) exit 1;; esac\n'
        f'exec {shlex.join(build._compiler())} "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    known = {"avx512_bf16": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert build.instruction_set() == "avx512"


@pytest.mark.parametrize("name", SETS)
def test_without_the_compilers_shuffles(name, monkeypatch) -> None:
    """As with GCC before 12."""
    monkeypatch.setenv("DITPRUNE_CXXFLAGS", "-O0 -DHAS_SHUFFLE=0")
    for shape in ((2, 40, 70), (40, 33, 64), (300, 70, 200)):
        inputs, weight, bias = draw(*shape, 0.5)
        for numbers in (torch.float32, torch.bfloat16):
            inputs_as, weight_as = inputs.to(numbers), weight.to(numbers)
            outputs = multiply(inputs_as, pack(weight_as), len(weight), bias, name)
            assert_is_dense(outputs, inputs_as, weight_as, bias)


@pytest.mark.no_compiler
def test_this_machine_has_one_of_the_sets() -> None:
    assert build.instruction_set() in build.INSTRUCTION_SETS
