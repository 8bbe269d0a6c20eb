"""Exceptions of this package: one that leaves it, and two that it catches itself."""


class SVGRefused(ValueError):
    """Refusal of a drawing: `reason` is a short stable name, `detail` is a sentence for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class PathError(ValueError):
    """Path data violates the grammar, or a number lies beyond ±MAX_NUMBER."""


class StyleError(ValueError):
    """A style sheet uses an unsupported selector or at-rule."""
