"""What one command was asked to do: frozen, validated, standard library only.

`jaxprobe.flags` builds these from the command line; a notebook can build them by hand. A value out of range
is a `ProbeError` that names the flag, so both get the same words.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jaxprobe.configs import MIN_PROBES, MIN_PRODUCTS, DeviceName, DTypeName, Metric, ReductionName, Wrt
from jaxprobe.errors import ProbeError
from jaxprobe.run_checks import (
    LARGEST,
    exclude,
    require,
    require_choice,
    require_count,
    require_memory,
    require_positive,
    require_seed,
    require_step,
)

ScanName = Literal["auto", "associative", "sequential"]
Method = Literal["exact", "matrix_free"]
Protocol = Literal["seed", "matched"]
Mode = Literal["zero", "mean", "reference_mean", "noise", "scale", "resample"]
Study = Literal["units", "layers", "selectivity", "linearity"]  # of the matched protocol

SHIPPED = "shipped"  # stands for the model of that kind which the package carries
DEFAULT_NUM_TEXTS = 30
DEFAULT_RANDOM_SETS = 100


@dataclass(frozen=True)
class Compute:
    """How to compute, whatever is computed.

    Raises:
      ProbeError: when a field is out of range.
    """

    dtype: DTypeName = "float32"
    device: DeviceName = "auto"
    scan: ScanName = "auto"
    seed: int = 0  # of every random draw, 0 .. 2**32 - 1
    batch_tokens: int = 4096  # the most tokens in one batch of each device, padding included, >= 1
    compile_cache: str | None = None  # folder of compiled programs, "off", or None: the default folder

    def __post_init__(self):
        require_choice("dtype", self.dtype, DTypeName)
        require_choice("device", self.device, DeviceName)
        require_choice("scan", self.scan, ScanName)
        require_seed(self.seed)
        require_count("batch_tokens", self.batch_tokens)


def check_scan(site: str | None, compute: Compute) -> None:
    """Refuses, before anything is loaded, an edit of the recurrent state beside a scan that has none.

    Raises:
      ProbeError: the two exclude one another.
    """
    if site == "ssm_state" and compute.scan == "associative":
        raise ProbeError("site ssm_state is edited inside the recurrence: use --scan=sequential or auto")


@dataclass(frozen=True)
class Effort:
    """What a matrix-free estimate of a Jacobian may cost, and what it gives.

    Raises:
      ProbeError: when a field is out of range, or the products do not suffice for the singular values.
    """

    num_singular_values: int = 1  # the largest, >= 1
    num_products: int = 60  # with J or its transpose, for the singular values: >= 4 and >= 2 a value
    num_probes: int = 20  # of the rest of the Frobenius norm, a product each, >= 20

    def __post_init__(self):
        require_count("num_singular_values", self.num_singular_values)
        require_count("num_products", self.num_products, MIN_PRODUCTS)
        require_count("num_probes", self.num_probes, MIN_PROBES)
        if self.num_products < 2 * self.num_singular_values:
            raise ProbeError(
                f"--num_products must be at least 2 for each of --num_singular_values="
                f"{self.num_singular_values}, got {self.num_products}"
            )


@dataclass(frozen=True)
class Cluster:
    """Processes that share one run, each started with the same flags but for `process`.

    Raises:
      ProbeError: when a field is missing, out of range or not wanted.
    """

    coordinator: str  # HOST:PORT of the first process, or "auto": the cluster says all
    num_processes: int | None = None
    process: int | None = None  # which of them this is; the first, 0, writes the results

    def __post_init__(self):
        automatic = self.coordinator == "auto"
        for name in ("num_processes", "process"):
            if automatic != (getattr(self, name) is None):
                words = "left out with" if automatic else "given with"
                raise ProbeError(f"--{name} must be {words} --coordinator={self.coordinator}")
        if self.num_processes is None or self.process is None:
            return
        host, _, port = self.coordinator.rpartition(":")
        require(bool(host) and port.isdigit(), "coordinator", "auto or HOST:PORT", self.coordinator)
        require_count("num_processes", self.num_processes)
        require_count("process", self.process, least=0)
        require(self.process < self.num_processes, "process", "below --num_processes", self.process)


@dataclass(frozen=True)
class JacobianRun:
    """One run of `python -m jaxprobe.jacobian`.

    Raises:
      ProbeError: when a field is out of range, both `texts` and `text` are given, or a study is asked for
        that `metric` or `wrt` rules out.
    """

    mamba: str = SHIPPED
    gpt2: str = SHIPPED
    layer: int | None = None  # counted from 0; None: all layers
    num_texts: int | None = None  # None: the first DEFAULT_NUM_TEXTS, or all where fewer
    texts: str | None = None  # a file, one text a line, or "-" for standard input
    text: tuple[str, ...] = ()  # texts given one by one
    add_bos: bool = False
    wrt: Wrt = "both"
    site: str = "block_out"  # what moves, of `jaxprobe.sites`
    method: Method = "exact"
    effort: Effort | None = None  # of matrix_free alone; None there: its defaults
    metric: Metric = "logits"  # of the output, for everything exact
    spectra: ReductionName = "auto"  # how singular values are had
    epsilon: float = 0.01  # standard deviation of the finite-difference draws, > 0
    num_samples: int = 10  # finite-difference draws per text, >= 1
    memory_gb: float | None = None  # GiB, > 0; None: what the process holds and 70% of what is free
    epsilon_sweep: bool = False  # one layer's finite differences over step sizes
    path: bool = False  # sigma_1 along segments between neighbouring texts' states
    cluster: Cluster | None = None  # None: this process alone, with all its devices
    report: bool = True  # also the HTML page
    out: Path = Path("results")
    compute: Compute = field(default_factory=Compute)

    def __post_init__(self):
        if self.layer is not None:
            require_count("layer", self.layer, least=0)
        if self.num_texts is not None:
            require_count("num_texts", self.num_texts)
        if self.texts is not None and self.text:
            raise ProbeError("--text and --texts exclude one another: give the texts one way")
        require_choice("wrt", self.wrt, Wrt)
        require_choice("method", self.method, Method)
        if self.effort is not None and self.method == "exact":
            raise ProbeError("an effort (--num_products and the like) needs --method=matrix_free")
        matrix_free = self.method == "matrix_free"
        studies = {"path": self.path, "epsilon_sweep": self.epsilon_sweep}
        if matrix_free:
            chosen = {"spectra": self.spectra != "auto", "memory_gb": self.memory_gb is not None}
            exclude({**chosen, **studies}, "--method=exact, got --method=matrix_free")
        norms = {"method=matrix_free": matrix_free, "spectra=none": self.spectra == "none"}
        check_scan(self.site, self.compute)
        if self.site != "block_out":
            exclude({**norms, **studies}, f"--site=block_out, got --site={self.site}")
        if self.cluster is not None:
            exclude({"method=matrix_free": matrix_free, **studies}, "one process: leave out --coordinator")
        if self.epsilon_sweep and self.spectra == "none":
            raise ProbeError("--epsilon_sweep needs singular values, got --spectra=none")
        require_choice("metric", self.metric, Metric)
        require_choice("spectra", self.spectra, ReductionName)
        if self.epsilon_sweep and (self.wrt == "last" or self.metric != "logits"):
            raise ProbeError(
                "--epsilon_sweep needs --wrt=sequence or both and --metric=logits, which finite differences "
                f"are of, got --wrt={self.wrt} --metric={self.metric}"
            )
        if self.path and self.metric == "fisher":
            raise ProbeError(
                "--path needs --metric=logits or centred, the same all along a segment, got --metric=fisher"
            )
        require_step("epsilon", self.epsilon)
        require_memory(self.memory_gb)
        require_count("num_samples", self.num_samples)


@dataclass(frozen=True)
class Perturbation:
    """Which units of which site are edited, and how (docs/definitions.md, "Perturbation").

    Raises:
      ProbeError: when a field is out of range, or what only the matched protocol has is asked of the seed's.
    """

    layer: int = 1  # counted from 0
    top_k: int = 10  # units edited, >= 1
    protocol: Protocol = "seed"
    site: str | None = None  # matched only; None: block_out
    mode: Mode = "zero"  # reference_mean and resample: matched only
    noise_std: float = 1.0  # mode=noise: standard deviation of the added noise, > 0
    scale: float = 0.5  # mode=scale: the factor
    scales: tuple[float, ...] = ()  # matched only, mode=scale: a sweep of factors, beside the one above
    top_fraction: float | None = None  # matched only: units edited as part of the site's, in (0, 1]; no top_k
    random_sets: int | None = None  # matched only, >= 1; None: DEFAULT_RANDOM_SETS
    studies: tuple[str, ...] | None = None  # matched only, of Study; None: all of them

    def __post_init__(self):
        require_count("layer", self.layer, least=0)
        require_count("top_k", self.top_k)
        require_choice("protocol", self.protocol, Protocol)
        require_choice("mode", self.mode, Mode)
        require_positive("noise_std", self.noise_std)
        require(self.noise_std <= LARGEST, "noise_std", f"at most {LARGEST:g}", self.noise_std)
        for factor in (self.scale, *self.scales):
            require(math.isfinite(factor), "scale", "a finite number", factor)
            require(abs(factor) <= LARGEST, "scale", f"at most {LARGEST:g} in size", factor)
        if self.scales and self.mode != "scale":
            raise ProbeError(f"--scale needs --mode=scale, got --mode={self.mode}")
        if self.site is not None and self.protocol == "seed":
            raise ProbeError(
                f"--site={self.site} needs --protocol=matched: the seed protocol fixes its own sites"
            )
        if self.protocol == "seed":
            for setting in self.beyond_one_edit:
                raise ProbeError(f"{setting} needs --protocol=matched: the seed protocol has no such thing")
        if self.top_fraction is not None:
            inside = 0 < self.top_fraction <= 1
            require(inside, "top_fraction", "above 0 and at most 1", self.top_fraction)
            if self.top_k != Perturbation.top_k:
                raise ProbeError("--top_k and --top_fraction exclude one another: give one of them")
        if self.random_sets is not None:
            require_count("random_sets", self.random_sets)
        studies = self.studies or ()
        for study in studies:
            require_choice("studies", study, Study)
        require(len(set(studies)) == len(studies), "studies", "each of them once", ",".join(studies))

    @property
    def value(self) -> float:
        """What the mode takes: the noise's standard deviation, the factor of a scaling, else 0."""
        return {"noise": self.noise_std, "scale": self.scale}.get(self.mode, 0.0)

    @property
    def beyond_one_edit(self) -> tuple[str, ...]:
        """What is asked for that only `delta_pct --protocol=matched` does, as flags."""
        asked = {
            f"--mode={self.mode}": self.mode in ("reference_mean", "resample"),
            f"--scale={','.join(f'{factor:g}' for factor in self.scales)}": bool(self.scales),
            f"--top_fraction={self.top_fraction}": self.top_fraction is not None,
            f"--random_sets={self.random_sets}": self.random_sets is not None,
            f"--studies={','.join(self.studies or ()) or 'none'}": self.studies is not None,
        }
        return tuple(flag for flag, given in asked.items() if given)


@dataclass(frozen=True)
class DeltaPctRun:
    """One run of `python -m jaxprobe.delta_pct`.

    Raises:
      ProbeError: when a field is out of range.
    """

    mamba: str = SHIPPED
    gpt2: str = SHIPPED
    perturbation: Perturbation = field(default_factory=Perturbation)
    # seed, all, facts, P36,P449,... or a file; None: facts under the matched protocol, seed under the seed's
    relations: str | None = None
    controls: str = "builtin"  # builtin, wikitext or FILE.txt
    report: bool = True  # also the HTML page
    out: Path = Path("results")
    compute: Compute = field(default_factory=Compute)
    memory_gb: float | None = None  # GiB, > 0; None: what the process holds and 70% of what is free

    def __post_init__(self):
        require_memory(self.memory_gb)
        check_scan(self.perturbation.site, self.compute)

    @property
    def relation_source(self) -> str:
        """`relations`, or what stands for it where none are named."""
        return self.relations or ("facts" if self.perturbation.protocol == "matched" else "seed")


@dataclass(frozen=True)
class FactualRecallRun:
    """One run of `python -m jaxprobe.factual_recall`.

    Raises:
      ProbeError: when a field is out of range, or the perturbation has settings that only `delta_pct` knows.
    """

    models: tuple[str, ...] = ()  # ids or directories; none: the shipped pair
    perturbation: Perturbation = field(default_factory=Perturbation)
    relations: str = "all"
    controls: str = "builtin"
    out: Path = Path("results")
    compute: Compute = field(default_factory=Compute)
    report: bool = True  # also the HTML page
    memory_gb: float | None = None  # GiB, > 0; None: what the process holds and 70% of what is free

    def __post_init__(self):
        require_memory(self.memory_gb)
        check_scan(self.perturbation.site, self.compute)
        for setting in self.perturbation.beyond_one_edit:
            raise ProbeError(f"{setting} is for delta_pct --protocol=matched: factual_recall makes one edit")


@dataclass(frozen=True)
class InspectRun:
    """One run of `python -m jaxprobe.inspect_model`."""

    models: tuple[str, ...] = ()  # ids or directories; none: the shipped pair
    verify: bool = False  # compare with HF's torch module, where torch is installed
    compute: Compute = field(default_factory=Compute)
