"""What attentune raises.

AttentuneError (a ValueError)
├── ConfigError        an option or recipe that cannot be meant
│   ├── ConflictError      what the present state does not allow: another one would
│   └── UnknownTaskError   a task that is not there
├── DataError          rows, columns or labels that do not fit the task
├── OverloadedError    more requests than the engine's limits allow; the same request may succeed later
├── StorageError       a disk that is full, or does not let itself be written or read
├── StoreError         an adapter folder that is missing, incomplete or does not fit the backbone
└── UnsupportedError   an architecture, method or request that attentune refuses, with what it offers instead

Every message says what was wanted, what was found and what exists.
"""


class AttentuneError(ValueError):
    """The root: catch this to catch everything that attentune raises on purpose."""


class ConfigError(AttentuneError):
    """An option or recipe that cannot be meant."""


class ConflictError(ConfigError):
    """What the present state does not allow: another one would."""


class UnknownTaskError(ConfigError):
    """A task that is not there."""


class DataError(AttentuneError):
    """Rows, columns or labels that do not fit the task."""


class OverloadedError(AttentuneError):
    """More requests than the engine's limits allow; the same request may succeed later."""


class StorageError(AttentuneError):
    """A disk that is full, or does not let itself be written or read."""


class StoreError(AttentuneError):
    """An adapter folder that is missing, incomplete or does not fit the backbone."""


class UnsupportedError(AttentuneError):
    """An architecture, method or request that attentune refuses; the message names what it offers instead."""
