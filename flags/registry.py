"""Where this project's flags live: apart from absl's global FLAGS, which the importing program may use."""

from absl import flags

FLAGS = flags.FlagValues()
