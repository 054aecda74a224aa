# %% [markdown]
# # 3. Optimise the guiding text
#
# GEPA, an optimiser of DSPy, rewrites the guiding text: the few sentences that a person wrote and that every rubric
# follows. A candidate is worth the mean reward of the pairs that it leads to, and the recipe's own text stays when
# nothing beats it.
#
# The reward of a pair is its influence if it passes every validity check, and a small penalty if not.

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
from optimsyn.stages import optimize_prompt

run = Run.start(recipe, size=size, generator=generator, changes=changes, run_folder=run_folder)

# %%
optimize_prompt.run(run)

# %% [markdown]
# ## Every text that was tried
#
# What was added, and does it make sense to you? A proposal is made from evidence: the best and the worst pairs of the
# same passages, and the checks that failed. Without `models.reflection` no language model rewrites the text; a rule
# picks what worked.

# %%
look.guiding_texts(run)

# %% [markdown]
# ## The search
#
# Filled dots were compared on all passages of the search, hollow ones were rejected after a few. A step of the line is
# a text that beat all earlier ones. With so few judged pairs the difference may be chance: the synthesis will judge
# both texts again.

# %%
look.prompt_picture(run)

# %% [markdown]
# ## What to try next
#
# - Give it more to spend, `changes = {"optimizers.prompt.metric_calls": 60}`, and let a model that can write reflect:
#   `{"models.reflection": "openai/gpt-6-luna"}`.
# - Write a deliberately bad guiding text into a copy of the recipe. Does the search find its way back?
# - [11_guiding_text_rubric_pair](11_guiding_text_rubric_pair.ipynb) follows one passage through all of it.
# - Then [04_train_policy](04_train_policy.ipynb) changes weights instead of words.
