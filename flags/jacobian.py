"""Flags of `python -m jaxprobe.jacobian`."""

from typing import get_args

from absl import flags

from jaxprobe.configs import Metric, ReductionName, Wrt
from jaxprobe.errors import ProbeError
from jaxprobe.flags import cluster, compute, layer, memory, models, output, report, site
from jaxprobe.flags.registry import FLAGS
from jaxprobe.run_configs import DEFAULT_NUM_TEXTS, Effort, JacobianRun, Method

DEFAULTS, EFFORT = JacobianRun(), Effort()
GROUPS = (models, layer, site, compute, memory, cluster, output, report)

NUM_TEXTS = flags.DEFINE_integer(
    "num_texts",
    DEFAULT_NUM_TEXTS,
    "How many texts, in order. Unless given, fewer will do, and every --text is taken.",
    flag_values=FLAGS,
)
TEXTS = flags.DEFINE_string(
    "texts",
    None,
    "File of texts, UTF-8, one a line; - is standard input. Without it: the relation sentences.",
    flag_values=FLAGS,
)
TEXT = flags.DEFINE_multi_string("text", None, "One text. Excludes --texts", flag_values=FLAGS)
ADD_BOS = flags.DEFINE_boolean(
    "add_bos",
    False,
    "Put the tokenizer's beginning-of-text token before every text that does not begin with it.",
    flag_values=FLAGS,
)
WRT = flags.DEFINE_enum(
    "wrt",
    DEFAULTS.wrt,
    get_args(Wrt),
    "What moves at the layer's output: the last token's row only (last), every row (sequence), or each "
    "in turn (both, from one pass).",
    flag_values=FLAGS,
)
METRIC = flags.DEFINE_enum(
    "metric",
    DEFAULTS.metric,
    get_args(Metric),
    "How far apart two outputs are, in everything exact: Euclidean distance of the logits, the same of "
    "centred logits (a common offset means nothing), or fisher, whose square is twice the KL divergence in "
    "nats. Finite differences and secant ratios stay those of the logits.",
    flag_values=FLAGS,
)
SPECTRA = flags.DEFINE_enum(
    "spectra",
    DEFAULTS.spectra,
    get_args(ReductionName),
    "How singular values are had. qr: to rounding of the largest. gram: from J J^T, several times cheaper, "
    "but values below about sqrt(rounding), 3e-4 of the largest in float32, are lost; norms and the largest "
    "values are as good. none: of the whole sequence norms alone, without ever holding J: for texts and "
    "models whose Jacobian does not fit; the last token's spectra are still made. auto: qr for up to "
    "256 outputs (the smaller of width and vocabulary), else gram.",
    flag_values=FLAGS,
)
METHOD = flags.DEFINE_enum(
    "method",
    DEFAULTS.method,
    get_args(Method),
    "exact: every entry of every Jacobian, by sweeps. matrix_free: for larger models, estimates of the "
    "largest singular values and of the Frobenius norm, with their errors, from products with the Jacobian "
    "alone; no exact Jacobian is then made.",
    flag_values=FLAGS,
)
NUM_SINGULAR_VALUES = flags.DEFINE_integer(
    "num_singular_values",
    EFFORT.num_singular_values,
    "matrix_free: the largest singular values wanted.",
    flag_values=FLAGS,
)
NUM_PRODUCTS = flags.DEFINE_integer(
    "num_products",
    EFFORT.num_products,
    "matrix_free: products with J or its transpose for the singular values, per text, layer and input.",
    flag_values=FLAGS,
)
NUM_PROBES = flags.DEFINE_integer(
    "num_probes",
    EFFORT.num_probes,
    "matrix_free: random probes of what is left of the Frobenius norm, a product each; at least 20.",
    flag_values=FLAGS,
)
EPSILON = flags.DEFINE_float(
    "epsilon", DEFAULTS.epsilon, "Standard deviation of a finite-difference draw.", flag_values=FLAGS
)
NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples", DEFAULTS.num_samples, "Finite-difference draws per text.", flag_values=FLAGS
)
EPSILON_SWEEP = flags.DEFINE_boolean(
    "epsilon_sweep",
    False,
    "Also the finite differences of one layer over step sizes from 1e-6 to 1, in float32 and float64: which "
    "steps can be trusted. The layer is --layer, else layer 1, or 0 where a model has no other.",
    flag_values=FLAGS,
)
PATH = flags.DEFINE_boolean(
    "path",
    False,
    "Also the path Lipschitz number of every layer: the largest sigma_1 along the segment from a text's "
    "last state to its neighbour's, in the text's own context. A grid's maximum: a lower estimate of the "
    "true one.",
    flag_values=FLAGS,
)


def _effort() -> Effort | None:
    defined = (NUM_SINGULAR_VALUES, NUM_PRODUCTS, NUM_PROBES)
    if METHOD.value == "matrix_free":
        return Effort(*(flag.value for flag in defined))
    for flag in defined:
        if flag.present:
            raise ProbeError(f"--{flag.name}={flag.value} needs --method=matrix_free, got --method=exact")
    return None


def to_config() -> JacobianRun:
    """The run that the command line asks for.

    Raises:
      ProbeError: when a value is out of range, --text and --texts are both given, or a flag of matrix_free
        with another --method.
    """
    return JacobianRun(
        mamba=models.MAMBA.value,
        gpt2=models.GPT2.value,
        layer=layer.LAYER.value,
        num_texts=NUM_TEXTS.value if NUM_TEXTS.present else None,
        texts=TEXTS.value,
        text=tuple(TEXT.value or ()),
        add_bos=ADD_BOS.value,
        wrt=WRT.value,
        site=site.SITE.value or JacobianRun.site,
        method=METHOD.value,
        effort=_effort(),
        metric=METRIC.value,
        spectra=SPECTRA.value,
        epsilon=EPSILON.value,
        num_samples=NUM_SAMPLES.value,
        memory_gb=memory.to_config(),
        epsilon_sweep=EPSILON_SWEEP.value,
        path=PATH.value,
        cluster=cluster.to_config(),
        report=report.to_config(),
        out=output.to_config(),
        compute=compute.to_config(),
    )
