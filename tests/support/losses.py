"""The contrastive losses and their gradients, written plainly in float64."""

from __future__ import annotations

import numpy as np
from scipy.special import expit, log_expit, logsumexp, softmax


def contrastive_float64(f: np.ndarray, g: np.ndarray, scale: float) -> tuple[np.floating, tuple[np.ndarray, ...]]:
    """The loss and its gradient by images, texts and logit scale."""
    t, b = np.exp(-scale), len(f)
    z = f @ g.T / t
    loss = np.mean((logsumexp(z, axis=0) + logsumexp(z, axis=1)) / 2 - np.diagonal(z))
    dz = ((softmax(z, axis=0) + softmax(z, axis=1)) / 2 - np.eye(b)) / b
    return loss, (dz @ g / t, dz.T @ f / t, np.sum(dz * z))


def sigmoid_float64(
    f: np.ndarray, g: np.ndarray, scale: float, bias: float
) -> tuple[np.floating, tuple[np.ndarray, ...]]:
    """The loss and its gradient by images, texts, logit scale and bias."""
    t, b = np.exp(-scale), len(f)
    z, sign = f @ g.T / t, 2 * np.eye(b) - 1
    loss = -np.sum(log_expit(sign * (z + bias))) / b
    dz = -sign * expit(-sign * (z + bias)) / b
    return loss, (dz @ g / t, dz.T @ f / t, np.sum(dz * z), np.sum(dz))
