"""Nested states, compared to the last bit: `repr` abbreviates tensors."""

from typing import Any

import numpy as np
import torch


def assert_same_tree(a: Any, b: Any, where: str = "state") -> None:
    """Both hold the same values in the same places."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape, where
        assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)), where
        assert torch.equal(a.isnan(), b.isnan()), where
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype, where
        assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f"), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same_tree(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_tree(x, y, f"{where}/{i}")
    else:
        assert a == b or (a != a and b != b), where
