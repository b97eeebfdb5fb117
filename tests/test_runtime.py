"""JAX set up as asked, in a process of its own as its settings are global; progress."""

import itertools
import json
import os
import subprocess
import sys

from jaxprobe import progress, runtime

SCRIPT = """
import json, sys
from jaxprobe import runtime
from jaxprobe.errors import ProbeError
from jaxprobe.run_configs import Compute
try:
    machine = runtime.configure(Compute(**json.loads(sys.argv[1])))
except ProbeError as error:
    sys.exit(f"error: {error}")
import jax, jax.numpy as jnp
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((3, 3))).block_until_ready()
precision = jax.config.jax_default_matmul_precision
print(json.dumps([machine.platform, machine.compile_cache, str(jnp.ones(1).dtype), precision]))
"""


def configure(tmp_path, **compute):
    environment = os.environ | {"JAXPROBE_CACHE": str(tmp_path / "kept"), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", SCRIPT, json.dumps(compute)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_float64_on_the_cpu_with_the_default_cache(tmp_path):
    done = configure(tmp_path, dtype="float64", device="cpu")
    cache = tmp_path / "kept" / "xla"
    assert json.loads(done.stdout) == ["cpu", str(cache), "float64", "highest"]
    assert done.stderr == ""
    assert list(cache.iterdir()), "small programs are kept too"


def test_float32_without_a_cache(tmp_path):
    done = configure(tmp_path, device="cpu", compile_cache="off")
    assert json.loads(done.stdout) == ["cpu", None, "float32", "highest"]
    assert not (tmp_path / "kept").exists()


def test_a_cache_that_cannot_be_written_is_said_and_done_without(tmp_path):
    (tmp_path / "kept").write_text("a file")
    done = configure(tmp_path, device="cpu")
    assert json.loads(done.stdout)[1] is None
    assert done.stderr.startswith("note: compiled programs are not kept: ") and done.stderr.count("\n") == 1


def test_a_gpu_that_is_not_there_is_an_error(tmp_path):
    done = configure(tmp_path, device="gpu")
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: --device=gpu, but JAX finds no GPU" in done.stderr


# The pullback of a LayerNorm for as many cotangents as tokens, which jaxlib 0.10.2 compiled wrong.
SUMS = """
import jax, jax.numpy as jnp, numpy as np
{first}
import jaxprobe
{second}
def norm(scale, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale
def pulled_back(scale, x, cotangents):
    return jax.vmap(lambda c: jax.vjp(lambda x: norm(scale, x), x)[1](c)[0])(cotangents)
x, cotangents = (np.random.default_rng(0).normal(size=s).astype("float32") for s in ((64, 64), (64, 64, 64)))
found = jax.jit(pulled_back)(np.ones(64, "float32"), x, cotangents)
one_by_one = [jax.jit(pulled_back)(np.ones(64, "float32"), x, c[None])[0] for c in cotangents]
print(float(jnp.abs(found - jnp.stack(one_by_one)).max()))
"""
BEGIN = "jnp.ones(3).sum().block_until_ready()"
CHECK = "from jaxprobe.runtime import check_reductions; check_reductions()"


def sums(first="", second="", **environment):
    command = [sys.executable, "-c", SUMS.format(first=first, second=second)]
    inherited = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.run(command, env=inherited | environment, capture_output=True, text=True)


def test_sums_are_right_where_jaxprobe_comes_first():
    done = sums(second=CHECK)
    assert float(done.stdout) < 1e-5, done.stderr


def test_where_jax_began_first_sums_are_right_or_that_is_said():
    done = sums(first=BEGIN, second=CHECK)
    if done.returncode:
        assert "import jaxprobe first, or set XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type" in done.stderr
        flags = done.stderr.rpartition("XLA_FLAGS=")[2].split()[0]
        done = sums(first=BEGIN, second=CHECK, XLA_FLAGS=flags)
    assert float(done.stdout) < 1e-5, done.stderr


def test_flags_of_the_users_own_are_kept():
    script = "import os, jaxprobe; print(os.environ['XLA_FLAGS'])"
    own = "--xla_cpu_experimental_ynn_fusion_type= --xla_dump_to=x"
    for given, expected in (
        ("--xla_dump_to=x", "--xla_dump_to=x --xla_cpu_experimental_ynn_fusion_type=-reduce"),
        (own, own),
    ):
        environment = os.environ | {"XLA_FLAGS": given}
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.stdout.strip() == expected


def test_flags_for_a_gpu_are_set_where_the_user_has_not():
    script = (
        "import os, sys; from jaxprobe import runtime; from jaxprobe.run_configs import Compute; "
        "runtime.configure(Compute(device=sys.argv[1], compile_cache='off')); print(os.environ['XLA_FLAGS'])"
    )
    own = "--xla_gpu_deterministic_ops=false --xla_disable_hlo_passes=dce"
    ours = "--xla_gpu_deterministic_ops=true --xla_disable_hlo_passes=triton-softmax-rewriter"
    sums = "--xla_cpu_experimental_ynn_fusion_type=-reduce"
    for device, given, expected in (
        ("cpu", "", sums),
        ("auto", "", f"{sums} {ours}"),
        ("auto", own, f"{own} {sums}"),
    ):
        environment = os.environ | {"XLA_FLAGS": given}
        command = [sys.executable, "-c", script, device]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.stdout.strip() == expected, done.stderr


def test_a_wide_models_programs_are_optimised_less_where_the_user_does_not_say(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    assert runtime.compiler_options(255) == {}
    assert runtime.compiler_options(256) == {"xla_backend_optimization_level": 1}
    assert runtime.compiler_options(255, mostly_products=True) == {}
    of_products = {"xla_backend_optimization_level": 1, "xla_cpu_use_fusion_emitters": False}
    assert runtime.compiler_options(256, mostly_products=True) == of_products
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=2")
    assert runtime.compiler_options(256) == {}


def test_progress_is_silent_when_quick_and_sparse_when_not(monkeypatch, capsys):
    clock = itertools.count(0.0, 20.0)
    assert list(progress.track(range(3), "layers")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("jaxprobe.progress.time.monotonic", lambda: next(clock))
    assert list(progress.track(range(5), "layers")) == [0, 1, 2, 3, 4]
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "layers: 1 of 5 parts done, about 160 s left",
        "layers: 3 of 5 parts done, about 53 s left",
    ]


def test_the_time_left_follows_the_costs_and_what_comes_later(monkeypatch, capsys):
    clock = itertools.count(0.0, 40.0)
    monkeypatch.setattr("jaxprobe.progress.time.monotonic", lambda: next(clock))
    assert list(progress.track(["a", "b", "c"], "Mamba", costs=[1.0, 4.0, 5.0], later=10.0)) == [
        "a",
        "b",
        "c",
    ]
    # After a, 80 s for 1 of 20; after b, 120 s for 5 of 20.
    assert capsys.readouterr().err.splitlines() == [
        "Mamba: 1 of 3 parts done, about 1520 s of all left",
        "Mamba: 2 of 3 parts done, about 360 s of all left",
    ]
