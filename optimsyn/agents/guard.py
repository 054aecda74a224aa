"""What an agent's recipes may touch: files inside one folder, models that are allowed, no code of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from optimsyn.agents.known_recipes import KnownRecipes
from optimsyn.base.errors import RecipeError
from optimsyn.recipe.bundled import EMBEDDED_PREFIX, recipes_folder
from optimsyn.recipe.own_parts import own_parts
from optimsyn.recipe.recipe import ModelSpec, Recipe

if TYPE_CHECKING:
    from optimsyn.recipe.sections.data import Source
    from optimsyn.recipe.sections.models import ModelSpec

# `owner/name` of a hub: neither absolute nor leading out of a folder.
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_HERE = frozenset({"localhost", "127.0.0.1", "::1"})


class Guard:
    """Refuses paths outside of a folder, and recipes that reach further than they may.

    Args:
        root: All files of recipes and runs are inside it, with symbolic links resolved.
        allow_hosted: Recipes may name services.
        allow_plugins: Recipes may name code (`package.module:name`), which would run with all rights of this process.
        addresses: Hosts that `api_base` may name beside this machine; a service's key is sent there.
    """

    def __init__(
        self, root: Path, *, allow_hosted: bool = False, allow_plugins: bool = False, addresses: Sequence[str] = ()
    ) -> None:
        self.root = root.resolve(strict=True)
        self.allow_hosted = allow_hosted
        self.allow_plugins = allow_plugins
        self._addresses = _HERE.union(address.casefold() for address in addresses)
        self._known = KnownRecipes(self.root)

    def path(self, name: str | Path) -> Path:
        """A path inside the root, relative ones from there; links are resolved.

        Raises:
            RecipeError: It leads outside.
        """
        if "\0" in str(name):
            raise RecipeError("a path cannot hold a null character; give a file or folder inside the root")
        path = (self.root / name).resolve()
        if not path.is_relative_to(self.root):
            raise RecipeError(f"{name}: is outside of {self.root}, the only folder that this server may use")
        return path

    def shown(self, path: Path) -> str:
        """A path from the root, for results."""
        return str(path.relative_to(self.root))

    def file_of(self, recipe: str) -> Path | str:
        """What `Recipe.load` takes: a recipe file or run folder inside the root, or a bundled recipe's name.

        Raises:
            RecipeError: It is outside.
        """
        bundled = recipes_folder() / f"{recipe}.yaml"
        if re.fullmatch(r"[\w-]+", recipe) and bundled.is_file() and not (self.root / recipe).exists():
            return bundled
        return self.path(recipe)

    def recipe(self, name: str, size: str = "full", changes: dict[str, Any] | None = None) -> Recipe:
        """A recipe that may be used.

        Raises:
            RecipeError: It is wrong, or reaches further than it may; names the field.
        """
        base = Recipe.load(self.file_of(name))
        # Before it is changed, since a change may hide what it holds back.
        self._known.note(base)
        sized = base.resized(size)
        return self.checked(sized.changed(changes or {}), sized)

    def checked(self, recipe: Recipe, base: Recipe | None = None) -> Recipe:
        """The recipe, if it may be used.

        Args:
            recipe: The recipe.
            base: What it was changed from.

        Raises:
            RecipeError: It may not; names every field.
        """
        problems = [*self._source_problems(recipe, base), *self._model_problems(recipe)]
        if not self.allow_plugins:
            problems += [
                f"{field}: {reference!r} is code that would run with all rights of this server; ask the person who "
                "started it for --allow-plugins"
                for field, reference in own_parts(recipe)
            ]
        if problems:
            raise RecipeError("\n".join(problems))
        self._known.note(recipe)
        return recipe

    def _source_problems(self, recipe: Recipe, base: Recipe | None) -> Iterator[str]:
        self._known.look()
        questions = recipe.questions
        used: list[tuple[str, Source | None]] = [
            ("documents.source", recipe.documents.source),
            ("questions.validation", questions.validation),
            ("reward.other_questions", recipe.reward.other_questions),
        ]
        for field, source in [*used, ("questions.test", questions.test)]:
            if source is None:
                continue
            problem = self._reach_problem(source)
            if problem is None and field != "questions.test":
                problem = self._known.shown_by(recipe, field, source)
            if problem is not None:
                yield f"{field}: {problem}"
        if (problem := self._known.redrawn(recipe, base)) is not None:
            yield f"questions: {problem}"

    def _reach_problem(self, source: Source) -> str | None:
        if source.hub is not None:
            if not _HUB_ID.fullmatch(source.hub) or Path(source.hub).exists():
                return f"{source.hub!r} is no name of a dataset of the hub, such as owner/name"
            return None
        path = str(source.path)
        if path.startswith(EMBEDDED_PREFIX):
            return None
        if source.follow_links:
            return "follow_links reads files outside of the folder; set it to false"
        try:
            self.path(path)
        except RecipeError as error:
            return str(error)
        return None

    def _model_problems(self, recipe: Recipe) -> Iterator[str]:
        models: dict[str, ModelSpec] = {f"models.{role}": spec for role, spec in recipe.models.writers.items()}
        models |= {"models.target": recipe.models.target}
        if recipe.fine_tune.target is not None:
            models |= {"fine_tune.target": recipe.fine_tune.target}
        for field, spec in models.items():
            yield from self.model_problems(field, spec)
        yield from self._known.repriced(recipe)

    def model_problems(self, field: str, spec: ModelSpec) -> Iterator[str]:
        """Why a model may not be used, each in a sentence.

        Args:
            field: Where it is named.
            spec: The model.
        """
        if spec.provider == "litellm" and not self.allow_hosted:
            yield f"{field}: {spec.name} is a service, and this was started without --allow-hosted"
        if spec.api_base is not None and (urlsplit(spec.api_base).hostname or "").casefold() not in self._addresses:
            yield (
                f"{field}.api_base: this server may not send keys and texts to {spec.api_base}; ask the "
                "person who started it for --allow-address HOST"
            )
        if spec.provider == "local" and (not _HUB_ID.fullmatch(spec.name) or Path(spec.name).exists()):
            try:
                self.path(spec.name)
            except RecipeError as error:
                yield f"{field}: {error}"
