"""Linear regression from sums alone, so that one pass over data of any length is enough.

    minimise  Σ_n ‖y_n - c - V f_n‖² + λ ‖V‖²

needs of the data only Σ f fᵀ and Σ f yᵀ: with F the rows (f_n, 1), the solution is (FᵀF + Λ)⁻¹ FᵀY, where Λ is λ on the
diagonal and 0 for the constant, which is not shrunk.
Source: Hoerl & Kennard 1970; Goodfellow, Bengio & Courville 2016, eq. 7.17.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from throughtime.errors import UsageError


class RidgeMoments:
    """FᵀF and FᵀY in float64, of as many rows as have been added."""

    def __init__(self, features: int, outputs: int, *, device: torch.device | None = None) -> None:
        self.rows = 0
        self.squares = torch.zeros(features + 1, features + 1, dtype=torch.float64, device=device)
        self.products = torch.zeros(features + 1, outputs, dtype=torch.float64, device=device)

    def add(self, features: Float[Tensor, "N F"], targets: Float[Tensor, "N O"]) -> None:
        """Take N rows in."""
        rows = functional.pad(features.to(self.squares), (0, 1), value=1.0)  # (N, F + 1)
        self.rows += len(rows)
        self.squares.addmm_(rows.mT, rows)
        self.products.addmm_(rows.mT, targets.to(self.products))

    def solve(self, ridge: float) -> tuple[Float[Tensor, "O F"], Float[Tensor, " O"]]:
        """V (O, F) and c (O,), with λ = `ridge`.

        Raises:
            UsageError: no rows, or rows that leave the solution open to the precision of float64.
        """
        if not self.rows:
            raise UsageError("ridge regression: expected rows to learn from, got none; the washout may take them all")
        penalty = torch.full((len(self.squares),), ridge, dtype=torch.float64, device=self.squares.device)
        penalty[-1] = 0
        factor, failed = torch.linalg.cholesky_ex(self.squares + torch.diag(penalty))
        if int(failed):
            raise UsageError(
                f"ridge regression: {self.rows} rows do not determine {len(self.squares)} weights for each output in "
                f"float64 with ridge={ridge:g}; set ridge higher, or give more data"
            )
        solution = torch.cholesky_solve(self.products, factor)  # (F + 1, O)
        return solution[:-1].mT.contiguous(), solution[-1].contiguous()
