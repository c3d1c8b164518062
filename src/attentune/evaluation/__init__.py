"""Numbers about predictions: metrics, probabilities, calibration, statistics. Sees arrays only."""
