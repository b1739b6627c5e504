"""Red-team output is written only for categories that a person has reviewed, and never without a warning.

The review file is YAML: who reviewed, when, and for each category of the seeds whether attacks on it may be written.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from verl_steer.checked import ConfigError
from verl_steer.whole import write_text

_EXAMPLE = "reviewer: NAME\ndate: 2026-01-31\ncategories:\n  privacy: true\n  weapons: false"
WARNING = """# Warning: this folder holds red-team conversations

Some rows (kind `red_team`) are written so that an assistant fails: they ask for harmful things by way of framings and
escalation. They exist to teach and to test refusal. The journals of an unfinished build also hold what a fixed model
replied to them. Do not publish them without the review that your organisation asks for, do not train a model to write them, and
keep them away from people who did not choose to read them. `verl-steer synth show` prints none of them unless asked to.

Reviewed by {reviewer} on {date}; categories that attacks were written for: {categories}.
"""


class Review:
    """A category review.

    Args:
        path: The file.

    Raises:
        ConfigError: It is missing or incomplete; the message shows what it must hold.
    """

    def __init__(self, path: Path) -> None:
        import yaml

        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"red_team.review: {path} cannot be read ({error}); it must hold\n{_EXAMPLE}") from error
        if not isinstance(found, dict) or not all(found.get(key) for key in ("reviewer", "date", "categories")):
            raise ConfigError(f"red_team.review: {path} must name reviewer, date and categories, e.g.\n{_EXAMPLE}")
        categories = found["categories"]
        if not isinstance(categories, dict) or not all(isinstance(value, bool) for value in categories.values()):
            raise ConfigError(f"red_team.review: {path}: categories must map each category to true or false")
        self.reviewer, self.date = str(found["reviewer"]), str(found["date"])
        self.categories: dict[str, bool] = {str(name): allowed for name, allowed in categories.items()}

    def approves(self, category: str) -> bool:
        """Whether attacks on this category may be written; one that is not listed may not."""
        return self.categories.get(category, False)

    def write_warning(self, folder: Path) -> None:
        """The warning card."""
        names = ", ".join(sorted(name for name, allowed in self.categories.items() if allowed)) or "none"
        text = WARNING.format(reviewer=self.reviewer, date=self.date, categories=names)
        write_text(folder / "WARNING.md", text)


def approval(enabled: bool, review: str | None) -> tuple[Review | None, Callable[[str], bool]]:
    """The review of a build, and whom to ask.

    Raises:
        ConfigError: The red team is on and there is no review.
    """
    if not enabled:
        return None, lambda category: False
    if review is None:
        raise ConfigError(
            "red_team.review names no file: attacks are written only for categories that a person has reviewed. "
            f"Build with --no-red-team, or give a YAML file such as\n{_EXAMPLE}"
        )
    found = Review(Path(review))
    return found, found.approves
