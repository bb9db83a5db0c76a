"""Predictions -> tokens: iterative parallel decoding as pure functions on tensors."""
