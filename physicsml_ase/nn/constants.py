"""Constants of a module, exact in whatever precision the module computes."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class Constants(nn.Module):
    """A module whose tables are rounded from float64 at each change of number type, and are not saved."""

    def __init__(self) -> None:
        super().__init__()
        self._exact: dict[str, Tensor] = {}

    def constant(self, name: str, value: NDArray[np.generic]) -> None:
        """Make `value` an attribute: whole numbers as they are, others in the default number type."""
        exact = torch.from_numpy(np.ascontiguousarray(value))
        self._exact[name] = exact
        dtype = torch.get_default_dtype() if exact.is_floating_point() else exact.dtype
        self.register_buffer(name, exact.to(dtype), persistent=False)

    def _apply(self, fn, recurse: bool = True) -> nn.Module:  # type: ignore[no-untyped-def]
        super()._apply(fn, recurse)
        for name, exact in self._exact.items():  # float32 and back would leave seven digits
            now = getattr(self, name)
            setattr(self, name, exact.to(device=now.device, dtype=now.dtype))
        return self
