"""What attentune raises.

AttentuneError (a ValueError)
├── ConfigError        an option or recipe that cannot be meant
├── DataError          rows, columns or labels that do not fit the task
├── StoreError         an adapter folder that is missing, incomplete or does not fit the backbone
└── UnsupportedError   an architecture, method or request that attentune refuses, with what it offers instead

Every message says what was wanted, what was found and what exists.
"""


class AttentuneError(ValueError):
    """The root: catch this to catch everything that attentune raises on purpose."""


class ConfigError(AttentuneError):
    """An option or recipe that cannot be meant."""


class DataError(AttentuneError):
    """Rows, columns or labels that do not fit the task."""


class StoreError(AttentuneError):
    """An adapter folder that is missing, incomplete or does not fit the backbone."""


class UnsupportedError(AttentuneError):
    """An architecture, method or request that attentune refuses; the message names what it offers instead."""
