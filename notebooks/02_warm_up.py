# %% [markdown]
# # 2. Warm-up: the target gets a direction
#
# A first draft of pairs is written under the recipe's own guiding text, and a share of the valid ones trains the
# target's LoRA for as many AdamW steps as it takes to learn the form of an answer. From then on a pair has an
# **influence**: how much one training step on it would lower the loss on the validation questions.
#
# The steps do more than lower the loss: they produce the Adam moments that make the influence that of the real
# optimiser, and the gradients of the validation questions give it one direction per subtask.

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
from optimsyn.stages import warm_up

run = Run.start(recipe, size=size, generator=generator, changes=changes, run_folder=run_folder)

# %%
warm_up.run(run)

# %% [markdown]
# ## The first draft
#
# The pair of highest and the one of lowest influence, with the rubric that each was written under. Read both: can you
# tell which is which? Drafts that failed are in `warm_up/invalid.jsonl` of the run, with the reasons.

# %%
look.first_draft(run)

# %% [markdown]
# ## When it ended, and why
#
# Blue is the **form**: how surprised the target is, on the validation questions, that an answer ends where it ends.
# Until that is learned, it is most of what a pair would be rewarded for, so the warm-up goes on until the blue line
# has settled. Red is the content of pairs that are not trained on: when it rises beyond its noise the target begins to
# learn its few pairs by heart, and the checkpoint is the look before. The bars are the learning rates that were tried.

# %%
look.warm_up_curve(run)

# %% [markdown]
# ## Loss and influence
#
# Left: each step trains on other pairs, so the line is rough; it should not explode. Right: every dot is a pair of the
# first draft. The dashed line is what a pair *without any gradient* would score. With the default estimator that is 0.
# With the paper's own (`adam` with `cosine`) momentum alone earns something, and a dot is only good where it is right
# of that line.

# %%
look.warm_up_picture(run)

# %% [markdown]
# ## Is the reward sound?
#
# Everything from here on is built on that number, so the run has checked it on its own pairs: is it computed correctly,
# is it more than form, length and momentum, and does real training from this checkpoint agree? The verdict is plain,
# *noise* stops a run, and an interval that includes 0 is only "not shown": a dozen pairs cannot show everything.

# %%
look.reward(run)

# %% [markdown]
# ## What to try next
#
# - `changes = {"influence.estimator": "adam", "influence.normalization": "cosine"}` is the paper's choice, with
#   `"influence.question_gradients": "unit"`. Where does the dashed line go?
# - `changes = {"warm_up.steps": 4, "warm_up.lr": 1e-4}` ends before the form is learned. Which pairs win now?
# - Are there pairs with negative influence? Training on them would *raise* the loss on the questions.
# - [10_influence_is_not_similarity](10_influence_is_not_similarity.ipynb) checks whether this number is more than
#   similarity.
# - Then [03_optimize_prompt](03_optimize_prompt.ipynb) uses it to rewrite the guiding text.
