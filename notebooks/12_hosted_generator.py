# %% [markdown]
# # A hosted model writes the pairs
#
# You replace the embedded generator: with a hosted model, or your own server. It is one parameter,
# `generator`, with any name that LiteLLM knows. You see what it costs, that nothing is bought twice, and what a missing
# or a wrong key looks like.
#
# **Without a key this notebook still runs.** It then starts a second llama.cpp server with the embedded model on this
# machine and treats it as "the hosted service": same protocol, same key check, same code path, no money. It is used
# like any service: as the bare base model, without the adapter that writes the pairs of a run, so its pairs are worse.

# %% [markdown] tags=["measured"]
# Not measured yet: `make notebooks` puts time, memory, tokens and cost here.

# %% tags=["parameters"]
generator: str = ""  # such as "openai/gpt-6-luna"; empty: a stand-in on this machine
recipe: str = "quickstart"  # a recipe file, or the name of one that comes with optimsyn
size: str = "tiny"  # "tiny": the embedded model and a handful of documents

# %%
from optimsyn.execution.notebook import check_environment

check_environment()

# %% [markdown]
# ## One parameter
#
# `Run.start` with a generator checks at once that its key is there. Keys stay in the environment: a recipe or a
# parameter never holds one, and what looks like one is refused.

# %%
from optimsyn import RecipeError, Run
from optimsyn.stages import prepare

try:
    Run.start(recipe, size=size, generator=generator or "openai/gpt-6-luna")
except RecipeError as error:
    print(f"Refused before anything was sent:\n{error}")
else:
    print("The key is there: such a run could start.")

# %% [markdown]
# ## The service
#
# For the trial below the passages of a run are enough. The stand-in listens on this machine and wants a key, as a
# hosted service does.

# %%
import os

from optimsyn.llm.embedded.server import EMBEDDED_ID, EmbeddedServer
from optimsyn.recipe.recipe import ModelSpec

run = Run.start(recipe, size=size)
prepare.run(run)
if generator:
    service = ModelSpec(name=generator, temperature=0.4, max_tokens=400)
else:
    server = EmbeddedServer(publish=False, writer=False).start()
    os.environ["STAND_IN_API_KEY"] = server.key
    own = {"api_base": server.url, "api_key_env": "STAND_IN_API_KEY", "prices": {"input": 0, "output": 0}}
    service = ModelSpec.model_validate({"name": f"openai/{EMBEDDED_ID}", "temperature": 0.4, "max_tokens": 200, **own})
print("hosted" if generator else "a stand-in on this machine:", service.name)

# %% [markdown]
# ## A few pairs on trial
#
# A chat model gets chat messages and a JSON schema; where a service refuses schemas, replies are parsed without one.
# Every pair goes through the same checks as in a run.

# %%
from optimsyn.study.generator_trial import ask_once, try_generator

trial = try_generator(run, service, count=4)
trial

# %% [markdown]
# ## Nothing is bought twice
#
# Every reply is on disk when it arrives. The same pairs again, and how many requests were sent for them:

# %%
again = try_generator(run, service, count=4)
print(f"{again.fresh} new requests, {again.usage.replies} replies in the file")

# %% [markdown]
# ## What it would cost
#
# Tokens as they were just counted, at the list prices that LiteLLM knows. A cap in the recipe (`limits.cost_usd`) stops
# a run before it costs more.

# %%
prices = trial.prices(
    ["openai/gpt-6-luna", "openai/gpt-6.1-sol", "gemini/gemini-3.5-flash-lite", "anthropic/claude-haiku-5-5"]
)
prices

# %%
prices.picture()

# %% [markdown]
# ## A wrong key
#
# It fails at once, without retries, and the message names the model and the cure. It never shows the key. In a run this
# is *not* an invalid pair: the run stops, everything is kept, and it goes on when the key is right.

# %%
from optimsyn import ServiceError

wrong = service.model_copy(update={"api_key_env": "WRONG_API_KEY"})
os.environ["WRONG_API_KEY"] = "this-key-opens-nothing"
try:
    ask_once(wrong, "Is anybody there?")
except ServiceError as error:
    print(error)

# %%
if not generator:
    server.close()

# %% [markdown]
# ## What to try next
#
# - Put a key into the environment *before* you start Jupyter (`export OPENAI_API_KEY=…`), set `generator` above, and
#   run all.
# - A whole run with it: `optimsyn run quickstart --set models.generator=openai/gpt-6-luna`. In a stage notebook it is
#   the parameter of the same name.
# - Your own server (vLLM, llama.cpp, Ollama): `changes = {"models.generator": {"name": "openai/NAME", "api_base":
#   "http://localhost:8000/v1"}}`.
