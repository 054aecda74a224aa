# %% [markdown]
# # 5. Synthesize
#
# Every variant writes candidates for the same passages with the same seeds: without a rubric, under the static guiding
# text, under the optimised one, and by the trained policy. They are checked, scored and selected, all to the same
# number, and one variant becomes the dataset.

# %% [markdown] tags=["measured"]
# Not measured yet: `make notebooks` puts time, memory, tokens and cost here.

# %% tags=["parameters"]
recipe: str = "quickstart"  # a recipe file, or the name of one that comes with optimsyn
size: str = "full"  # "tiny": the embedded model and a handful of documents
generator: str = ""  # another model that writes the pairs, such as "openai/gpt-6-luna"
changes: dict = {}  # further recipe fields, such as {"synthesis.pairs": 20}
run_folder: str = ""  # an existing run; `optimsyn run` fills it in, the rest is then ignored

# %%
from optimsyn.execution.notebook import check_environment

check_environment()

# %% [markdown]
# The line below creates the run for these parameters, or opens it where it stopped. A finished stage shows its result
# again and buys nothing; earlier stages must have finished.

# %%
from optimsyn import Run
from optimsyn.report import look
from optimsyn.stages import synthesize

run = Run.start(recipe, size=size, generator=generator, changes=changes, run_folder=run_folder)

# %%
synthesize.run(run)

# %% [markdown]
# ## Which variant's pairs help?
#
# Every dot is a valid candidate. Look at the overlap before you look at the bars: with a handful of pairs a variant, a
# difference of medians is easily chance.

# %%
look.variants_picture(run)

# %% [markdown]
# ## The best and the worst
#
# Read them. Is the best one a good question, or has something learned to please the score? Whatever an optimiser is
# rewarded for, it finds; reading the top pairs is the cheapest check there is.

# %%
look.best_and_worst(run)

# %% [markdown]
# The same for single words: which ones of the answer cause the influence?

# %%
look.words(run)

# %% [markdown]
# ## The dataset
#
# `dataset/` in the run holds Parquet with the whole lineage, JSON lines with chat messages, and a card for the hub.

# %%
look.dataset(run)

# %% [markdown]
# ## What to try next
#
# - `changes = {"synthesis.select": "first"}` keeps the first valid pairs instead of the best: how much was due to
#   selection, and how much to the rubric?
# - Add a check of your own that catches what you did not like above:
#   [13_your_documents_and_checks](13_your_documents_and_checks.ipynb).
# - Then [06_fine_tune](06_fine_tune.ipynb) trains the target on each variant.
