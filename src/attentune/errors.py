"""What attentune raises.

AttentuneError (a ValueError)
├── ConfigError        an option or recipe that cannot be meant
│   └── UnknownTaskError   a task that is not there
├── DataError          rows, columns or labels that do not fit the task
├── OverloadedError    more requests than the engine's limits allow; the same request may succeed later
├── StoreError         an adapter folder that is missing, incomplete or does not fit the backbone
└── UnsupportedError   an architecture, method or request that attentune refuses, with what it offers instead

Every message says what was wanted, what was found and what exists.
"""


class AttentuneError(ValueError):
    """The root: catch this to catch everything that attentune raises on purpose."""


class ConfigError(AttentuneError):
    """An option or recipe that cannot be meant."""


class UnknownTaskError(ConfigError):
    """A task that is not there."""


class DataError(AttentuneError):
    """Rows, columns or labels that do not fit the task."""


class OverloadedError(AttentuneError):
    """More requests than the engine's limits allow; the same request may succeed later."""


class StoreError(AttentuneError):
    """An adapter folder that is missing, incomplete or does not fit the backbone."""


class UnsupportedError(AttentuneError):
    """An architecture, method or request that attentune refuses; the message names what it offers instead."""
