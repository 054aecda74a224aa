# %% [markdown]
# # 4. Train the policy
#
# GRPO trains a LoRA on the rubric model: several rubrics for one passage are compared by the reward of the pairs that
# they lead to, and the better ones become more likely.

# %% tags=["parameters"]
run_folder: str = ""

# %% [markdown]
# `run_folder` is filled in by `optimsyn run`. Left empty, this notebook opens the run of the quickstart, or makes it.

# %%
from optimsyn.runs import Run
from optimsyn.stages import train_policy

run = Run.load(run_folder)
run

# %%
result = train_policy.run(run)
result

# %% [markdown]
# Does the reward rise, and at what KL from the untrained model? Every step is in `train_policy/history.jsonl`.
