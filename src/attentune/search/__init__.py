"""Search: method and settings chosen by Optuna, within a budget of bytes and latency."""
