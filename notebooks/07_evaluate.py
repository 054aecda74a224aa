# %% [markdown]
# # 7. Evaluate
#
# The target as it came and every fine-tuned one answer the held-back test questions. Intervals come from a bootstrap
# over the questions, and differences to the target as it came are paired by question.

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
from optimsyn.stages import evaluate

run = Run.start(recipe, size=size, generator=generator, changes=changes, run_folder=run_folder)

# %%
evaluated = evaluate.run(run)

# %%
look.evaluation(run)

# %% [markdown]
# ## With intervals
#
# A star marks a paired difference that excludes 0. With few questions and one seed most have none. That is no evidence
# of equality: there are too few questions to tell.

# %%
look.evaluation_picture(run)

# %% [markdown]
# ## What were rubrics worth?
#
# Fine-tuning on almost any pairs teaches a model what an answer looks like, so the target as it came is easily beaten.
# The question is whether pairs under a rubric did better than *as many pairs without one*:

# %%
look.against_no_rubric(run)

# %% [markdown]
# The whole run is on one page, `report.html` in the run folder, and its numbers in `summary.json`.

# %%
from optimsyn.report.page.report import write_report

write_report(run).name

# %% [markdown]
# ## What to try next
#
# - Put two runs side by side: `optimsyn compare runs/A runs/B`.
# - Your own domain with real models: `optimsyn new medicine mine.yaml`, then change documents, questions and
#   models.
# - A whole night of them: `optimsyn batch recipes/*.yaml --jobs 2`.
