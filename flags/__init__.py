"""absl flags: groups, and each command's `to_config()`. The only code that reads FLAGS; imports no jax."""
