"""Sites that hand over what a model prepared for them before the walk: generated or selected prompts."""

from __future__ import annotations

from torch import Tensor

from avcl_core.sites import Rows, SiteModule
from avcl_core.walk import Ctx


class FromMemo(SiteModule):
    """Returns ``ctx.memo[key]``, which ``Model.prepare`` put there: key and value rows for ``prefix``, tokens for ``input``.

    It holds no parameters: one generator may serve several sites and towers, and is owned where it is built.
    """

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key

    def forward(self, own: Tensor, other: Tensor | None, ctx: Ctx) -> Tensor | Rows:
        """Return what was prepared; the tokens of the towers are not read."""
        return ctx.memo[self.key]
