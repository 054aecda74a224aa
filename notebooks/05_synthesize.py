# %% [markdown]
# # 5. Synthesize
#
# Every variant writes candidates for the same passages with the same seeds: without a rubric, under the static
# guiding text, under the optimised one, and by the trained policy. They are checked, scored and selected; one variant
# becomes the dataset.

# %% tags=["parameters"]
run_folder: str = ""

# %% [markdown]
# `run_folder` is filled in by `optimsyn run`. Left empty, this notebook opens the run of the quickstart, or makes it.

# %%
from optimsyn.runs import Run
from optimsyn.stages import synthesize

run = Run.load(run_folder)
run

# %%
result = synthesize.run(run)
result

# %% [markdown]
# Read the pairs of highest influence: are they good, or has something learned to please the score?
