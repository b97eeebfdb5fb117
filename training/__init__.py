"""How the pair of checkpoints in `jaxprobe/assets` is made and measured. Not part of the wheel."""
