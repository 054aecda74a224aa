# %% [markdown]
# # 1. Prepare: what comes in
#
# Documents become passages, and expert questions become two sets. You see what was kept, what was dropped and why, and
# which questions will judge every pair that is written later.
#
# - A **passage** is a stretch of a document with exact character offsets: every pair can be traced to its words.
# - **Validation questions** give the influence its direction. **Test questions** are held back: nothing but the very
#   last notebook and the check for repeated questions looks at them.

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
# again and buys nothing.

# %%
from optimsyn import Run
from optimsyn.report import look
from optimsyn.stages import prepare

run = Run.start(recipe, size=size, generator=generator, changes=changes, run_folder=run_folder)

# %%
prepare.run(run)

# %% [markdown]
# ## Passages
#
# This is what the rubric model and the generator get. Does it have whole sentences, about one thing?

# %%
look.passages(run)

# %% [markdown]
# ## Questions
#
# One of each subtask. The pairs will imitate their form (free or multiple choice, length of the answer), and a pair is
# good when it moves the target towards answering such questions. Is a model that answers these what you want?

# %%
look.questions(run, count=4)

# %% [markdown]
# ## Length, and what was lost
#
# The dashed line is the recipe's longest passage. Many very short passages are usually headings and debris; then raise
# `documents.min_words`. Every lost row is named with its reason in `prepare/lost.jsonl` of the run.

# %%
look.prepare_picture(run)

# %% [markdown]
# ## What to try next
#
# - Is the longest passage too long for one idea? Run this notebook with `changes = {"documents.passage_words": 80}`: a
#   recipe that gives other results gets a run of its own, and both can be compared.
# - Take your own texts: [13_your_documents_and_checks](13_your_documents_and_checks.ipynb).
# - Then [02_warm_up](02_warm_up.ipynb) writes a first draft and gives the target a direction.
