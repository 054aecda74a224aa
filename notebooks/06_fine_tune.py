# %% [markdown]
# # 6. Fine-tune
#
# The target, from its start, is fine-tuned on the selected pairs of each variant: the same number of pairs, the same
# steps, the same seed. What differs is where the rubric came from, and nothing else.

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
from optimsyn.stages import fine_tune

run = Run.start(recipe, size=size, generator=generator, changes=changes, run_folder=run_folder)

# %%
fine_tune.run(run)

# %% [markdown]
# ## Training loss
#
# Is one variant's loss much lower than the others'? Easy pairs are not better pairs: a set that the target knows
# already has a low loss and teaches nothing. Only the next notebook says what was learned.

# %%
look.training_picture(run)

# %% [markdown]
# ## What to try next
#
# - Another seed: `changes = {"seed": 8}` makes a whole new run. The spread between seeds is what the intervals of the
#   next notebook do *not* contain.
# - Then [07_evaluate](07_evaluate.ipynb) asks the questions that nobody has seen.
