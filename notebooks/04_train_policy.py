# %% [markdown]
# # 4. Train the policy
#
# GRPO trains a LoRA on the rubric model. Several rubrics are written for one passage, each leads to a pair, and rubrics
# above the mean of their group become more likely. The weights of the generator and of the target never change
# here.

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
from optimsyn.stages import train_policy

run = Run.start(recipe, size=size, generator=generator, changes=changes, run_folder=run_folder)

# %%
train_policy.run(run)

# %% [markdown]
# ## One group
#
# The rubrics were sampled from the same model for the same passage; only chance made them different. Those above the
# mean become more likely, those below less. An invalid pair earns the penalty and is never scored.

# %%
look.policy_groups(run)

# %% [markdown]
# ## All groups, and what came of it
#
# Left: a group whose dots all lie on each other teaches nothing. Middle: the mean reward of a step is that of *its*
# passages, so two steps are not comparable one by one; a trend over many is what counts. Right: how far the policy has
# moved from its initial model. A reward that rises while KL runs away is a policy that has found a trick.

# %%
look.policy_picture(run)

# %% [markdown]
# ## What to try next
#
# - A real training has dozens of steps and larger groups: `changes = {"optimizers.policy.steps": 30,
#   "optimizers.policy.group_size": 8}`, on a GPU.
# - Raise `optimizers.policy.temperature`: the groups spread, until replies are no rubrics any more.
# - Then [05_synthesize](05_synthesize.ipynb) writes the pairs that all this was for.
