# %% [markdown]
# # The whole loop in one sitting
#
# You run optimsyn's whole loop on a few texts on nutrition medicine: from documents to a fine-tuned and evaluated
# model, with a look at the data after each step. You need no key, no GPU and no model hub.
#
# In short: a few sentences of yours (the *guiding text*) become a *rubric* for each passage, the rubric becomes a
# question-answer *pair*, and the gradients of the model that you want to teach show whether the pair would help it
# on questions that an expert wrote. That number, the *influence*, is the reward that improves the guiding text and
# trains the model that writes the rubrics.
#
# **What such a small run shows, and what not.** All numbers are real, and every part is the one that a large run uses.
# But the model is Gemma 3 270M, smaller than any that you would use, with a handful of pairs per variant. (To write
# rubrics and pairs it has an adapter, the *writer*.) It shows the mechanism. It cannot show whether optimised rubrics
# make better data: the intervals in the last step are wider than any difference.

# %% [markdown] tags=["measured"]
# Not measured yet: `make notebooks` puts time, memory, tokens and cost here.

# %% tags=["parameters"]
recipe: str = "quickstart"  # a recipe file, or the name of one that comes with optimsyn
size: str = "tiny"  # "tiny": the embedded model and a handful of documents
generator: str = ""  # another model that writes the pairs, such as "openai/gpt-6-luna"
changes: dict = {}  # further recipe fields, such as {"synthesis.pairs": 20}
run_folder: str = ""  # an existing run; `optimsyn run` fills it in, the rest is then ignored

# %% [markdown]
# ## Is everything here?

# %%
from optimsyn.execution.notebook import check_environment

check_environment()

# %% [markdown]
# ## The recipe
#
# One file defines a run. `Run.start` checks all of it before anything is bought, and creates a folder for everything.
# Run the notebook again and it resumes where it stopped; a finished stage costs nothing.

# %%
from optimsyn import Run
from optimsyn.stages import evaluate, fine_tune, optimize_prompt, prepare, synthesize, train_policy, warm_up
from optimsyn.report import look

run = Run.start(recipe, size=size, generator=generator, changes=changes, run_folder=run_folder)
run.recipe

# %% [markdown]
# ## 1. Prepare
#
# Documents become passages with exact character offsets. Questions become a validation set, which will judge every
# pair, and a test set, which is not used before the end.

# %%
prepare.run(run)

# %%
look.passages(run)

# %%
look.questions(run)

# %% [markdown]
# ## 2. Warm-up
#
# A first draft of pairs is written under your guiding text and trains the target for a few steps. Now a pair has an
# influence: how much one more training step on it would lower the loss on the validation questions. Below is the best
# and the worst pair of the draft, with their rubrics. Does each question follow its rubric?

# %%
warm_up.run(run)

# %%
look.first_draft(run)

# %% [markdown]
# Every dot is a pair. A pair left of the dashed line harms, or at best does nothing.

# %%
look.warm_up_picture(run)

# %% [markdown]
# ## 3. Better words: GEPA on the guiding text
#
# An optimiser rewrites the guiding text and keeps what raises the mean reward. A search this short may well keep
# yours: then both lines below are the same, and the hollow dot in the picture is a rejected text.

# %%
optimize_prompt.run(run)

# %%
look.prompt_picture(run)

# %% [markdown]
# ## 4. Better weights: GRPO on the rubric model
#
# Several rubrics are sampled for one passage. Those whose pairs are better than the mean of their group become more
# likely. A step or two have no visible effect; this shows how it works.

# %%
train_policy.run(run)

# %%
look.policy_groups(run)

# %% [markdown]
# ## 5. Synthesize
#
# Four variants write pairs for the same passages with the same seeds: without a rubric, under your text, under the
# optimised text, and by the trained policy. All are checked, scored and cut to the same number.

# %%
synthesize.run(run)

# %%
look.variants_picture(run)

# %% [markdown]
# The pair of highest influence and that of lowest. Is the best one good, or does it only please the score?

# %%
look.best_and_worst(run)

# %% [markdown]
# And which words of an answer cause it? Shares of all words add up to the influence of the pair.

# %%
look.words(run)

# %% [markdown]
# The dataset, with the sentence that each pair rests on:

# %%
look.dataset(run)

# %% [markdown]
# ## 6. Fine-tune
#
# The target learns from each variant's pairs: same number, same steps, same seed.

# %%
fine_tune.run(run)

# %% [markdown]
# ## 7. Evaluate
#
# The target as it came and every fine-tuned one answer the held-back test questions.

# %%
evaluated = evaluate.run(run)

# %%
look.evaluation(run)

# %%
look.evaluation_picture(run)

# %% [markdown]
# How to read it: compare the coloured rows *with each other*, not with the grey one. Fine-tuning on almost any pairs
# teaches a base model what an answer looks like, so its loss falls whatever the pairs were. (A star would mark a paired
# difference to the grey row that excludes 0.) Whether rubrics, the optimised text or the trained policy were worth
# anything is the difference between the coloured rows, and their bars lie on top of each other: **that has not been
# shown here**, whatever the dots say. It takes hundreds of questions, several seeds and a model that can write. The
# whole run is on one page in `report.html` of its folder.
#
# Larger runs of optimsyn's own with this model have shown a first step. Below, policies trained on hundreds of judged
# rubrics, asked about passages that they were not trained on: right of the dashed line they earned more reward than the
# untrained policy.

# %%
look.policies_picture()

# %% [markdown]
# In one domain of four a policy learned something, namely which verdicts to ask for, and nothing from rewards dealt by
# chance. Whether its pairs make a better model than those of a fixed text is open; `docs/science/policy.md` tells all
# of it.
#
# ## What to try next
#
# - `size = "full"` above is the same recipe in a quarter of an hour, with a few more of everything.
# - Step through the stages one by one, with more to see in each: [01_prepare](01_prepare.ipynb) to
#   [07_evaluate](07_evaluate.ipynb).
# - Check whether influence is more than similarity:
#   [10_influence_is_not_similarity](10_influence_is_not_similarity.ipynb).
# - Change the guiding text and see what follows: [11_guiding_text_rubric_pair](11_guiding_text_rubric_pair.ipynb).
# - Let a stronger model write: [12_hosted_generator](12_hosted_generator.ipynb).
# - Bring your own texts and checks: [13_your_documents_and_checks](13_your_documents_and_checks.ipynb).
