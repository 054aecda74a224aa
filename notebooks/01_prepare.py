# %% [markdown]
# # 1. Prepare
#
# Documents become passages with exact character offsets; questions become a validation set, which gives the influence
# its direction, and a test set, which nothing looks at before the last notebook.

# %% tags=["parameters"]
run_folder: str = ""

# %% [markdown]
# `run_folder` is filled in by `optimsyn run`. Left empty, this notebook opens the run of the quickstart, or makes it.

# %%
from optimsyn.runs import Run
from optimsyn.stages import prepare

run = Run.load(run_folder)
run

# %%
result = prepare.run(run)
result

# %% [markdown]
# Which rows were lost, and why? `prepare/lost.jsonl` in the run folder names every one.
