# %% [markdown]
# # Your documents, your questions, your checks
#
# You take a folder of your own texts (Markdown, plain text, HTML, Word, PDF), a file of questions, and your own rule
# for pairs, and see three pairs from them before anything expensive starts.
#
# The folder here holds four short texts on beekeeping in four formats. Everything below works with yours: put its path
# into `folder`.

# %% [markdown] tags=["measured"]
# Not measured yet: `make notebooks` puts time, memory, tokens and cost here.

# %% tags=["parameters"]
folder: str = ""  # holds recipe.yaml, documents/ and questions; empty: the example that comes with optimsyn
pairs: int = 3  # pairs in the preview

# %%
from optimsyn.execution.notebook import check_environment

check_environment()

# %% [markdown]
# ## What is in the folder

# %%
from pathlib import Path

from optimsyn.execution.notebook import examples_folder

place = Path(folder) if folder else examples_folder() / "beekeeping"
print("\n".join(sorted(str(path.relative_to(place)) for path in place.rglob("*.*") if "__" not in str(path))))

# %% [markdown]
# ## The recipe
#
# Paths are relative to the recipe's own folder. Questions are rows with `question` and `answer`, as JSON lines or CSV;
# with `choices` they are multiple choice, and `group` keeps those that belong together on one side of the split.

# %%
print((place / "recipe.yaml").read_text())

# %% [markdown]
# ## Your own check
#
# A check is a function that gets a pair and its context, and returns `None` or the reason why the pair fails. It is in
# any module that Python can import; the recipe names it under `checks.plugins`.

# %%
import sys

sys.path.insert(0, str(place))
print((place / "bee_checks.py").read_text())

# %% [markdown]
# ## Validate
#
# Files, rows, models and checks are verified in seconds; whatever would stop a run is reported now, with file, row and
# fix.

# %%
from optimsyn.machine.preflight import validate
from optimsyn.recipe.recipe import Recipe

recipe = Recipe.load(place / "recipe.yaml")
validate(recipe)

# %% [markdown]
# An example of a mistake: the same questions from the CSV file, with a missing column.

# %%
from optimsyn import RecipeError
from optimsyn.recipe.changes import changed

wrong = changed(
    recipe,
    {"questions.validation": {"path": str(place / "questions.csv"), "columns": {"answer": "anser"}}},
)
try:
    validate(wrong).raise_if_refused()
except RecipeError as error:
    print(error)

# %% [markdown]
# With the correct column name the CSV file works like the JSON lines:

# %%
validate(changed(recipe, {"questions.validation": str(place / "questions.csv")}))

# %% [markdown]
# ## Preview
#
# Pairs with their rubrics, the verdict of all checks and a first impression of influence. Invalid ones are shown too:
# see which check refused them.

# %%
from optimsyn import Run
from optimsyn.report import look
from optimsyn.stages.preview import preview

run = Run.start(str(place / "recipe.yaml"), size="tiny")
preview(run, pairs)

# %% [markdown]
# Where the passages came from, and whether anything was dropped:

# %%
look.prepare_picture(run)

# %% [markdown]
# ## What to try next
#
# - Copy the folder, put your texts in, and write the guiding text: two or three sentences that say what a good question
#   in your field asks.
# - Start the whole run: `optimsyn run recipe.yaml --size tiny`, then without the size. For checks beside the recipe,
#   put their folder on Python's path: `PYTHONPATH=. optimsyn run recipe.yaml`.
# - Sentences that your generator keeps getting wrong make good checks. Read the lowest and the highest pairs in
#   [05_synthesize](05_synthesize.ipynb).
