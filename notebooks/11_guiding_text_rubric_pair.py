# %% [markdown]
# # Guiding text, rubric, pair
#
# You follow one passage from a guiding text to a rubric, from the rubric to a pair, and from the pair to its reward,
# twice: once under the recipe's guiding text and once under your own. You also see the exact prompts.
#
# A **guiding text** is the same for all passages and says what you want. A **rubric** is written for one passage and
# says what that wish means *here*. The **pair** is written under the rubric. Only the guiding text is yours; everything
# after it is learned or judged.

# %% [markdown] tags=["measured"]
# Not measured yet: `make notebooks` puts time, memory, tokens and cost here.

# %% tags=["parameters"]
recipe: str = "quickstart"  # a recipe file, or the name of one that comes with optimsyn
size: str = "tiny"  # "tiny": the embedded model and a handful of documents
run_folder: str = ""  # an existing run; the two above are then ignored
passage: int = 0  # which passage to follow, in the run's own order
guiding_text: str = "Write criteria for one question about a number with its unit, such as an amount or an age."

# %%
from optimsyn.execution.notebook import check_environment

check_environment()

# %% [markdown]
# The target must be warm, so that a pair has a reward. If it is not, the first two stages run now.

# %%
from optimsyn import Run
from optimsyn.study.walkthrough import Workbench
from optimsyn.execution.in_process import run_through

run = Run.start(recipe, size=size, run_folder=run_folder)
run_through(run, "warm_up")

# %%
bench = Workbench(run)
bench.passage(passage)

# %% [markdown]
# ## Under the recipe's guiding text

# %%
first = bench.follow(run.recipe.guiding_text, passage)
first

# %% [markdown]
# ## Under yours
#
# Same passage, same models, same seed. Only the words of the guiding text differ, so whatever differs below comes from
# them.

# %%
second = bench.follow(guiding_text, passage)
second

# %% [markdown]
# Did the rubric follow the text? Did the pair follow the rubric? A model of 270M parameters does so only in part, and
# one pair is no evidence: follow some more passages before you believe a difference.

# %%
texts = {"recipe's guiding text": run.recipe.guiding_text, "yours": guiding_text}
bench.compare(texts, range(passage, passage + 4))

# %% [markdown]
# ## The prompts
#
# Nothing is hidden between your text and the model. First the request for the rubric. The embedded model was trained
# for it: it gets the passage and your guiding text. Other models get the task and two worked examples first.

# %%
second.sent[0]

# %% [markdown]
# Then the request for the pair. The generator never sees the guiding text, only the rubric: this is why a rubric can be
# trained while the generator stays as it is.

# %%
second.sent[-1]

# %% [markdown]
# ## What to try next
#
# - Change `guiding_text` in the parameters cell: ask for definitions, for causes, for what to tell a patient.
# - Make it impossible ("a question about Roman law"). What does the reward say, and which check catches it?
# - [03_optimize_prompt](03_optimize_prompt.ipynb) lets an optimiser do this search, and
#   [13_your_documents_and_checks](13_your_documents_and_checks.ipynb) shows how to add a check.
