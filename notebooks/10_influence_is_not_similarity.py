# %% [markdown]
# # Influence is not similarity
#
# A synthetic pair can look like the real questions and teach nothing, or look like none of them and help. You compare
# the two measures on the pairs of a run: similarity of embeddings, as retrieval uses it, and influence, which is
# measured on the target.
#
# The OptimSyn paper shows this for large models: synthetic and real samples lie close together in embedding space and
# far apart in influence. Here the same analysis runs on a small model and a handful of pairs, and **whatever comes out
# is printed**: with so few samples the interval of the correlation is wide, and it may well contain both "no relation"
# and "a clear one".

# %% [markdown] tags=["measured"]
# Not measured yet: `make notebooks` puts time, memory, tokens and cost here.

# %% tags=["parameters"]
recipe: str = "quickstart"  # a recipe file, or the name of one that comes with optimsyn
size: str = "tiny"  # "tiny": the embedded model and a handful of documents
run_folder: str = ""  # an existing run; the two above are then ignored

# %%
from optimsyn.execution.notebook import check_environment

check_environment()

# %% [markdown]
# A run that has synthesized is needed. If there is none yet, its first stages run now, which takes some minutes.

# %%
from optimsyn import Run
from optimsyn.report import look
from optimsyn.stages import prepare
from optimsyn.execution.in_process import run_through
from optimsyn.stages.shared import Tools

run = Run.start(recipe, size=size, run_folder=run_folder)
run_through(run, "synthesize")

# %% [markdown]
# ## Two measures of the same samples
#
# Half of the validation questions (every second one of each subtask) give the direction of influence and the centre for
# similarity. The other half represent *real data*: they are scored exactly like the synthetic pairs, and no question is
# compared with itself.
#
# A tiny run has only a few questions, so all validation questions of the recipe are read for this.
#
# Embeddings are mean hidden states of the target's own base model, minus the mean of all samples, because
# otherwise every cosine is nearly 1. This is not an embedding model. Give `compare_similarity` another `embedder` for a
# stronger one.

# %%
from optimsyn.study.similarity import compare_similarity

whole = run if run_folder else Run.start(recipe)
prepare.run(whole)
validation = Tools(whole).validation
tools = Tools(run)
found = compare_similarity(
    tools.target, run.recipe.influence, validation, look.judged_pairs(run), training=tools.batch_training
)
found

# %% [markdown]
# Spearman's coefficient is 1 where one measure orders the samples as the other does and 0 where it says nothing about
# it. Read the interval, not the number: if it reaches from well below 0 to well above, these samples cannot tell.

# %%
found.picture()

# %% [markdown]
# Left, each sample once: if similarity were influence, the dots would rise along a line. Right, the first two principal
# components of the embeddings, coloured by influence.
#
# A falling line is not a law either. Both measures also see the *form* of a sample, such as its length and whether it
# has options, and synthetic pairs differ from the experts' in form. Before you read a correlation as meaning, look
# within one kind, which the table does.
#
# ## Similar, with different influence
#
# Of all synthetic pairs, the two that differ least in similarity relative to their difference in influence:

# %%
found.apart()

# %% [markdown]
# ## Which words?
#
# Influence can be divided among the words of an answer, unlike similarity. Here are the pairs of highest and
# of lowest influence of the dataset's variant: blue words help, red words hurt.

# %%
look.words(run)

# %% [markdown]
# ## What to try next
#
# - More samples make the interval narrow: give `run_folder` a finished run of size `full`, or of a recipe of yours.
# - `run.recipe.influence` says how influence is computed. Does the paper's choice (`adam`, `cosine`, `unit`) see
#   something else? Start a run with `changes = {"influence.estimator": "adam", "influence.normalization": "cosine",
#   "influence.question_gradients": "unit"}`.
# - Whether influence predicts what training really does is another question, with a benchmark of its own:
#   `docs/influence.md`.
