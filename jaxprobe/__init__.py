"""jaxprobe: how sensitive is a language model to a small change inside it?

The names below are loaded when first used (PEP 562), so that `import jaxprobe`, and `--help`, stay quick.
"""

import importlib
import sys
import types
from typing import Any

from jaxprobe import runtime

runtime.sound_reductions()  # before anyone's first use of JAX, or what is exact may be wrong

__version__ = "0.1.0"

# Public name -> the module that defines it.
_HOMES = {
    "capture": "jaxprobe.perturb",
    "delta_sensitive": "jaxprobe.library",
    "jacobian": "jaxprobe.library",
    "load": "jaxprobe.library",
    "perplexity": "jaxprobe.library",
    "perturb": "jaxprobe.perturb",
    "sensitivity": "jaxprobe.library",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


class _Package(types.ModuleType):
    """Keeps a public function visible after the module of the same name is imported.

    `jaxprobe.perturb` is the function; the module is reached by `from jaxprobe.perturb import ...`.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
