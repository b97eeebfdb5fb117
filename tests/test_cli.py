"""The command line: flags become configs, help is complete, what goes wrong is one line and an exit code."""

import errno
import importlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jaxprobe import cli
from jaxprobe.errors import ProbeError
from jaxprobe.run_configs import Compute, DeltaPctRun, FactualRecallRun, InspectRun, JacobianRun, Perturbation

COMMANDS = ("jacobian", "delta_pct", "factual_recall", "inspect_model")


def flag_module(command):
    return importlib.import_module(f"jaxprobe.flags.{command}")


@pytest.fixture
def run(capfd):
    """Runs a command's flags through the runner: (exit code, the config or None, stdout, stderr lines)."""

    def call(command, *arguments, action=None):
        seen = []
        argv = ["program", *arguments]
        code = cli.run(action or seen.append, flag_module(command), "About it.", argv)
        out, err = capfd.readouterr()
        return code, (seen or [None])[0], out, err.splitlines()

    return call


@pytest.mark.parametrize("command, config", [
    ("jacobian", JacobianRun()),
    ("delta_pct", DeltaPctRun()),
    ("factual_recall", FactualRecallRun()),
    ("inspect_model", InspectRun()),
])  # fmt: skip
def test_flags_and_configs_have_the_same_defaults(run, command, config):
    assert run(command) == (0, config, "", [])


COMPUTE_FLAGS = (
    "--dtype=float64 --device=cpu --scan=sequential --seed=7 --batch_tokens=64 --compile_cache=off"
)
COMPUTE = Compute("float64", "cpu", "sequential", 7, 64, "off")
EDIT_FLAGS = "--layer=0 --top_k=3 --protocol=matched --site=delta --mode=noise --noise_std=2"
EDIT = Perturbation(0, 3, "matched", "delta", "noise", 2.0)


@pytest.mark.parametrize("command, arguments, config", [
    ("jacobian", "--mamba=m --gpt2=g --layer 1 --num_texts 5 --text a --text=b --add_bos --wrt=last "
     f"--epsilon=1e-3 --num_samples=4 --out=o {COMPUTE_FLAGS}",
     JacobianRun(mamba="m", gpt2="g", layer=1, num_texts=5, text=("a", "b"), add_bos=True, wrt="last",
                 epsilon=1e-3, num_samples=4, out=Path("o"), compute=COMPUTE)),
    ("jacobian", "--texts=-", JacobianRun(texts="-")),
    ("delta_pct", f"--mamba=m --gpt2=g {EDIT_FLAGS} --relations=all --controls=c.txt --out=o {COMPUTE_FLAGS}",
     DeltaPctRun("m", "g", EDIT, "all", "c.txt", out=Path("o"), compute=COMPUTE)),
    ("delta_pct", "--mode=scale --scale=2", DeltaPctRun(perturbation=Perturbation(mode="scale", scale=2.0))),
    ("factual_recall",
     f"--model=a --model=b {EDIT_FLAGS} --relations=P36 --controls=wikitext --out=o {COMPUTE_FLAGS}",
     FactualRecallRun(("a", "b"), EDIT, "P36", "wikitext", Path("o"), COMPUTE)),
    ("inspect_model", f"--model=a --verify {COMPUTE_FLAGS}", InspectRun(("a",), True, COMPUTE)),
])  # fmt: skip
def test_every_flag_reaches_the_config_and_help(run, command, arguments, config):
    assert run(command, *arguments.split())[:2] == (0, config)
    text = run(command, "--help")[2]
    for name in re.findall(r"--(\w+)", arguments):
        assert f"--{name}:" in text or f"--[no]{name}:" in text


def test_thirty_texts_asked_for_are_not_the_default_thirty(run):
    """The default takes fewer where there are fewer; a number that was asked for does not."""
    assert run("jacobian")[1].num_texts is None
    assert run("jacobian", "--num_texts=30")[1].num_texts == 30


@pytest.mark.parametrize("command, arguments, message", [
    ("jacobian", "--layer=-1", "--layer must be an integer >= 0, got -1"),
    ("jacobian", "--layer -1", "--layer must be an integer >= 0, got -1"),
    ("jacobian", "--layer=one", "--layer must be an integer, got 'one'"),
    ("jacobian", "--layer=1.5", "--layer must be an integer, got '1.5'"),
    ("jacobian", "--epsilon=small", "--epsilon must be a number, got 'small'"),
    ("jacobian", "--epsilon=0", "--epsilon must be a finite number > 0, got 0.0"),
    ("jacobian", "--epsilon=1e22", "--epsilon must be between 1e-15 and 1e15, got 1e+22"),
    ("jacobian", "--texts=", "--texts must not be empty: leave it out for its default"),
    ("delta_pct", "--relations=", "--relations must not be empty: leave it out for its default"),
    ("delta_pct", "--protocol=matched --studies=",
     "--studies must not be empty: leave it out for its default"),
    ("jacobian", "--epsilon=inf", "--epsilon must be a finite number > 0, got inf"),
    ("jacobian", "--num_texts=0", "--num_texts must be an integer >= 1, got 0"),
    ("jacobian", "--num_samples=0", "--num_samples must be an integer >= 1, got 0"),
    ("jacobian", "--batch_tokens=0", "--batch_tokens must be an integer >= 1, got 0"),
    ("jacobian", "--seed=-1", "--seed must be an integer >= 0, got -1"),
    ("jacobian", "--seed=4294967296", "--seed must be below 2**32, got 4294967296"),
    ("jacobian", "--text=a --texts=b", "--text and --texts exclude one another: give the texts one way"),
    ("jacobian", "--wrt=first", "flag --wrt=first: value should be one of <last|sequence|both>"),
    ("jacobian", "--device=tpu", "flag --device=tpu: value should be one of <auto|cpu|gpu>"),
    ("jacobian", "--layers=1", "Unknown command line flag 'layers'. Did you mean: layer ?"),
    ("jacobian", "--layer", "Missing value for flag --layer"),
    ("jacobian", "--layer=1 2", "expected only flags (--name=value), got the argument '2'"),
    ("jacobian", "--add_bos false", "expected only flags (--name=value), got the argument 'false'"),
    ("delta_pct", "--top_k=0", "--top_k must be an integer >= 1, got 0"),
    ("delta_pct", "--site=delta",
     "--site=delta needs --protocol=matched: the seed protocol fixes its own sites"),
    ("delta_pct", "--scale=2", "--scale needs --mode=scale, got --mode=zero"),
    ("delta_pct", "--mode=scale --scale=nan", "--scale must be a finite number, got nan"),
    ("delta_pct", "--mode=noise --noise_std=0", "--noise_std must be a finite number > 0, got 0.0"),
])  # fmt: skip
def test_a_wrong_command_line_is_one_line_and_exit_code_2(run, command, arguments, message):
    assert run(command, *arguments.split()) == (2, None, "", [f"error: {message}"])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_the_command_does_and_succeeds(run, command):
    code, config, out, err = run(command, "--help")
    assert (code, config, err) == (0, None, [])
    assert out.startswith(f"usage: python -m jaxprobe.{command} [--flag=value ...]\n\nAbout it.\n")


def raising(error):
    def action(_):
        print("so far")
        raise error

    return action


class JaxRuntimeError(RuntimeError):
    """As XLA's, which is not imported to be caught."""


@pytest.mark.parametrize("error, code, line", [
    (ProbeError("a model\nis bad"), 2, "a model is bad"),
    (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 2, "no space left: /x/y"),
    (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "permission denied: /x"),
    (MemoryError(), 2, "out of memory: give fewer or shorter texts, or a smaller --batch_tokens"),
    (JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"), 2,
     "out of memory: give fewer or shorter texts, or a smaller --batch_tokens"),
    (KeyboardInterrupt(), 130, "interrupted"),
])  # fmt: skip
def test_what_goes_wrong_in_a_command_is_one_line(run, error, code, line):
    assert run("jacobian", action=raising(error)) == (code, None, "so far\n", [f"error: {line}"])


@pytest.mark.parametrize("error", [ValueError("a bug"), TypeError("a bug"), KeyError("a bug")])
def test_a_bug_keeps_its_traceback(run, error):
    with pytest.raises(type(error), match="a bug"):
        run("jacobian", action=raising(error))


SCRIPT = """
import sys
from jaxprobe import cli
from jaxprobe.errors import ProbeError
from jaxprobe.flags import jacobian as flags
def command(config):
    print("line\\n" * int(sys.argv[1]), flush=True)
    sys.stdin.readline()
    print("more")
    print("progress", file=sys.stderr, flush=True)
    open(sys.argv[2], "w").close()
    if "fails" in sys.argv:
        raise ProbeError("no")
sys.exit(cli.run(command, flags, "", ["program"]))
"""


@pytest.mark.parametrize("lines", ["1", "100000"])
@pytest.mark.parametrize("errors", [subprocess.STDOUT, subprocess.DEVNULL])
@pytest.mark.parametrize("fails", [False, True])
def test_a_reader_that_leaves_does_not_end_the_command(lines, errors, fails, tmp_path):
    """Of output alone, or errors with it (`2>&1 | head`); of much, or what is held back to the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, lines, tmp_path / "written", *["fails"] * fails],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": ""},
    )  # fmt: skip
    assert process.stdin and process.stdout and process.stdout.readline() == "line\n"
    process.stdout.close()
    process.stdin.close()
    assert process.wait(timeout=30) == (2 if fails else 0)
    assert (tmp_path / "written").exists()


def test_no_output_at_all_is_no_error(tmp_path):
    script = f'"{sys.executable}" -c "$0" 1 "{tmp_path / "written"}" >&- 2>&-'
    done = subprocess.run(["sh", "-c", script, SCRIPT], timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == 0 and (tmp_path / "written").exists()


def test_control_c_is_one_line_and_exit_code_130():
    # A shell starts its background jobs with SIGINT ignored, and the tests may be such a job.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", heed + SCRIPT, "100000"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    for _ in range(100000):
        process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == "error: interrupted\n"
    assert process.returncode == 130
