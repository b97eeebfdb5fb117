"""The site a command looks at; commands differ in what they do there."""

from absl import flags

from jaxprobe.flags.registry import FLAGS

SITE = flags.DEFINE_string(
    "site",
    None,
    "Site; without it: block_out, the residual stream. mixer_out of both models; delta, B, C, conv_out, gate "
    "and ssm_state of Mamba; mlp_act and mlp_out of GPT-2. A model without it is skipped. In jacobian what "
    "moves: finite differences, Lipschitz ratios and ranks are of block_out alone. In delta_pct and "
    "factual_recall where units are chosen and edited: --protocol=matched only.",
    flag_values=FLAGS,
)
