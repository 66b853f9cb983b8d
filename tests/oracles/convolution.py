"""Convolution as plain loops: PyTorch's definition, and its gradients."""

import numpy as np


def conv_loop(x, kernel, stride, groups):
    """Plain convolution of one NHWC picture with k // 2 pixels of zeros around."""
    size = kernel.shape[0]
    pad = size // 2
    padded = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
    rows = (x.shape[0] + 2 * pad - size) // stride + 1
    columns = (x.shape[1] + 2 * pad - size) // stride + 1
    inputs, outputs = kernel.shape[2], kernel.shape[3] // groups
    y = np.zeros((rows, columns, kernel.shape[3]))
    for row in range(rows):
        for column in range(columns):
            top, left = row * stride, column * stride
            patch = padded[top : top + size, left : left + size]
            for group in range(groups):
                part = patch[..., group * inputs : (group + 1) * inputs]
                weights = kernel[..., group * outputs : (group + 1) * outputs]
                y[row, column, group * outputs : (group + 1) * outputs] = np.tensordot(
                    part, weights, 3
                )
    return y


def conv_gradient_loop(x, kernel, y_grad, stride):
    """Gradients of x (H, W, I) and kernel (k, k, I, O) of an ungrouped `conv_loop`."""
    size = kernel.shape[0]
    pad = size // 2
    padded = np.pad(x, ((pad, pad), (pad, pad), (0, 0))).astype(np.float64)
    padded_grad, kernel_grad = np.zeros_like(padded), np.zeros(kernel.shape)
    for row, column in np.ndindex(y_grad.shape[:2]):
        top, left = row * stride, column * stride
        window = (slice(top, top + size), slice(left, left + size))
        padded_grad[window] += kernel @ y_grad[row, column]
        kernel_grad += padded[window][..., None] * y_grad[row, column]
    height, width, _ = x.shape
    return padded_grad[pad : pad + height, pad : pad + width], kernel_grad
