"""Fixtures for every test, and run-time checks of the shapes in jaxprobe's signatures."""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as jaxprobe.runtime does, before jax loads it

import jax
import jaxtyping
import pytest

# Before any import of the package: beartype checks every annotated argument and result.
jaxtyping.install_import_hook("jaxprobe", "beartype.beartype")

# The tests compile thousands of tiny programs and run each a few times: few optimisations, and XLA's older
# code generator, which takes a third of the time. Commands that run as processes are compiled as always.
jax.config.update("jax_disable_most_optimizations", True)
with pytest.MonkeyPatch.context() as patch:
    from jaxprobe import runtime  # sets flags of its own

    runtime._add_flags(runtime._GPU_FLAGS)  # a command would, but the flags are read once
    for flag in ("--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"):
        patch.setenv("XLA_FLAGS", flag, prepend=" ")
    jax.devices()  # reads them


@pytest.fixture
def x64():
    """float64 in JAX for one test; jit keeps programs of either setting apart."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs():
    """Frees what a file's tests compiled: no other file uses it, and together they take 6 GB."""
    yield
    jax.clear_caches()


_BLANK = {"png": b"", "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>", "pdf": b""}


@pytest.fixture
def undrawn(request, monkeypatch):
    """Commands make their pictures but do not draw them, which takes seconds; `@pytest.mark.drawn` does."""
    if "drawn" not in request.keywords:
        for builder in ("jacobians.report", "original.report", "matched.report"):
            monkeypatch.setattr(f"jaxprobe.{builder}.render", lambda figure: _BLANK)
