"""What a server takes on at most."""

import math
from dataclasses import asdict, dataclass

from attentune.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """Each is a flag of `attentune serve` and an environment variable of the same name in capitals.

    Raises:
        ConfigError: one that lets nothing through, or waits for ever.
    """

    max_concurrent_requests: int = 512
    """Requests in work at once; more are turned away with 503."""
    max_batch_tokens: int = 8192
    """Tokens of a batch, padding included."""
    max_batch_rows: int = 64
    """Sequences of a batch."""
    max_wait_ms: float = 2.0
    """How long a sequence waits for company."""
    max_queue: int = 4096
    """Sequences that wait; more are turned away with 503, a request of more than that alone with 422."""
    max_client_batch_size: int = 1024
    """Answers that one request asks for: items times tasks."""
    payload_limit: int = 2_000_000
    """Bytes of a request's body."""
    upload_limit: int = 64_000_000
    """Bytes of an adapter that is uploaded, packed and unpacked."""
    request_timeout_s: float = 60.0
    """Seconds until a request is given up with 503, and those that its body may take to come (408)."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name not in ("max_wait_ms", "request_timeout_s") and value < 1:
                raise ConfigError(f"{name} is 1 at least, found {value}")
        if not 0 <= self.max_wait_ms < math.inf:
            raise ConfigError(f"max_wait_ms is a finite number, 0 at least, found {self.max_wait_ms}")
        if not 0 < self.request_timeout_s < math.inf:
            raise ConfigError(f"request_timeout_s is a finite number above 0, found {self.request_timeout_s}")
