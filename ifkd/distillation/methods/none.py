"""No method: the student learns from its targets alone."""

from ifkd import recipe
from ifkd.distillation import Views
from ifkd.distillation.methods.method import Method, Student, Term


class NoDistillation(Method):
    """Adds nothing."""

    def __init__(self, config: recipe.NoMethod, student: Student) -> None:  # noqa: ARG002
        super().__init__()
        self.config = config

    def losses(self, views: Views) -> dict[str, Term]:  # noqa: ARG002
        """Return no terms."""
        return {}
