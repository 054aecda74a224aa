# %% [markdown]
# # 3. Optimise the guiding text
#
# GEPA rewrites the guiding text. A candidate is worth the mean reward of the pairs that it leads to; the recipe's own
# text stays when nothing beats it.

# %% tags=["parameters"]
run_folder: str = ""

# %% [markdown]
# `run_folder` is filled in by `optimsyn run`. Left empty, this notebook opens the run of the quickstart, or makes it.

# %%
from optimsyn.runs import Run
from optimsyn.stages import optimize_prompt

run = Run.load(run_folder)
run

# %%
result = optimize_prompt.run(run)
result

# %% [markdown]
# Would you have written the chosen text yourself? Every candidate is in `optimize_prompt/history.jsonl`.
