# %% [markdown]
# # 7. Evaluate
#
# The target as it came and every fine-tuned one answer the held-back test questions. Intervals come from a bootstrap
# over the questions.

# %% tags=["parameters"]
run_folder: str = ""

# %% [markdown]
# `run_folder` is filled in by `optimsyn run`. Left empty, this notebook opens the run of the quickstart, or makes it.

# %%
from optimsyn.runs import Run
from optimsyn.stages import evaluate

run = Run.load(run_folder)
run

# %%
result = evaluate.run(run)
result

# %% [markdown]
# Influence of the pairs of each variant, the reward over optimisation, and the evaluation:

# %%
from IPython.display import Image

Image(filename=str(run.path("summary.png")), width=900)

# %% [markdown]
# Which differences are larger than their intervals? With few questions and one seed, most are not.
