# %% [markdown]
# # 6. Fine-tune
#
# The target is fine-tuned on the selected pairs of each variant: the same number of pairs, the same steps, the same
# seed.

# %% tags=["parameters"]
run_folder: str = ""

# %% [markdown]
# `run_folder` is filled in by `optimsyn run`. Left empty, this notebook opens the run of the quickstart, or makes it.

# %%
from optimsyn.runs import Run
from optimsyn.stages import fine_tune

run = Run.load(run_folder)
run

# %%
result = fine_tune.run(run)
result

# %% [markdown]
# Is the training loss of one variant much lower than that of the others? Easy pairs are not better pairs.
