# %% [markdown]
# # 2. Warm-up
#
# A first draft of pairs is written under the recipe's own guiding text. A share of the valid ones trains the target's
# LoRA for a few AdamW steps: the moments of those steps make the influence optimizer-aware, and the gradients of the
# validation questions give it one direction a subtask.

# %% tags=["parameters"]
run_folder: str = ""

# %% [markdown]
# `run_folder` is filled in by `optimsyn run`. Left empty, this notebook opens the run of the quickstart, or makes it.

# %%
from optimsyn.runs import Run
from optimsyn.stages import warm_up

run = Run.load(run_folder)
run

# %%
result = warm_up.run(run)
result

# %% [markdown]
# How does the mean influence compare with that of a zero gradient, which momentum alone would earn?
