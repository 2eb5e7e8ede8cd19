"""No method: the student learns from its targets alone."""

from ifkd import recipe
from ifkd.distillation import DistillationBatch
from ifkd.distillation.methods.method import Method, NetworkPair, Term


class NoDistillation(Method):
    """Adds nothing."""

    def __init__(self, config: recipe.NoMethodOptions, student: NetworkPair) -> None:  # noqa: ARG002
        super().__init__()
        self.config = config

    def losses(self, views: DistillationBatch) -> dict[str, Term]:  # noqa: ARG002
        """Return no terms."""
        return {}
