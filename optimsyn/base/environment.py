"""Every environment variable that optimsyn reads or sets; no other module touches `os.environ` (ruff holds that).

Two kinds cannot be listed here: the variables that a recipe names for its keys (`api_key_env`), and those whose name
says that they hold a secret, which `optimsyn.base.secrets.redaction` removes from all output. Both are read through the
functions below.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

# For users.
# The folder for the files of the embedded model and the text of scans; else the platform's usual cache folder.
CACHE = "OPTIMSYN_CACHE"
# The model that chooses the analyst's steps, where none is given.
ANALYST_MODEL = "OPTIMSYN_ANALYST_MODEL"

# Set by optimsyn for its child processes.
# Address and key of the embedded model's server, so that a run's processes share one.
EMBEDDED_URL = "OPTIMSYN_EMBEDDED_URL"
EMBEDDED_KEY = "OPTIMSYN_EMBEDDED_KEY"
# The file with the caps that all runs of a batch share.
PURSE = "OPTIMSYN_PURSE"
# The process id of the batch; its runs end with it.
PARENT = "OPTIMSYN_PARENT"
# The file that a notebook's kernel locks while it is alive.
KERNEL_LOCK = "OPTIMSYN_KERNEL_LOCK"
# Names of a run's further secrets, comma-separated, for JupyterLab.
SECRET_NAMES = "OPTIMSYN_SECRET_NAMES"  # noqa: S105 (the name of a variable)

# Of libraries and tools, read.
CUDA_VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"  # also set for a run of a batch that has a GPU of its own
HF_ENDPOINT = "HF_ENDPOINT"
HF_HUB_OFFLINE = "HF_HUB_OFFLINE"
JUPYTER_PATH = "JUPYTER_PATH"  # also set for JupyterLab, so that its kernel is this interpreter
KERNEL_PARENT = "JPY_PARENT_PID"  # set by jupyter_client for every kernel
RAY_ADDRESS = "RAY_ADDRESS"

# Of libraries and tools, set unless already set.
OMP_WAIT_POLICY = "OMP_WAIT_POLICY"  # idle OpenMP threads sleep; see `optimsyn/__init__.py`
TIKTOKEN_CACHE_DIR = "TIKTOKEN_CACHE_DIR"  # use the vocabularies that come with LiteLLM, no download
LITELLM_LOCAL_MODEL_COST_MAP = "LITELLM_LOCAL_MODEL_COST_MAP"  # use the model list that comes with it, no download
RAY_USAGE_STATS_ENABLED = "RAY_USAGE_STATS_ENABLED"  # no usage statistics

# Set for child processes.
OMP_THREAD_LIMIT = "OMP_THREAD_LIMIT"  # tesseract is slower with threads
OMP_NUM_THREADS = "OMP_NUM_THREADS"
PYTHONUNBUFFERED = "PYTHONUNBUFFERED"
PYTHONUTF8 = "PYTHONUTF8"

# Extended by loopback, where the embedded model's server listens.
NO_PROXY = ("NO_PROXY", "no_proxy")

# In a notebook cell the progress bars of libraries become pages of text, or widgets that go blank.
NO_PROGRESS_BARS: Mapping[str, str] = {
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# Set by the first cell of a notebook.
QUIET: Mapping[str, str] = {**NO_PROGRESS_BARS, "TRANSFORMERS_VERBOSITY": "error"}

# All that the converter's child process gets: a malicious file finds no keys there.
CONVERTER = frozenset(
    (
        *("PATH", "HOME", "USERPROFILE", "TMPDIR", "TEMP", "TMP", "LANG", "LC_ALL", "LC_CTYPE", "SYSTEMROOT"),
        *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX"),
    )
)

# All that tesseract gets; the last is where its language data lies.
OCR = CONVERTER | {"TESSDATA_PREFIX"}

OPENAI_KEY = "OPENAI_API_KEY"
HF_TOKEN = "HF_TOKEN"  # noqa: S105 (the name of a variable)
# The variables that LiteLLM reads a provider's key from; any one will do. Other providers need no key, or more than one
# variable.
SERVICE_KEYS: Mapping[str, tuple[str, ...]] = {
    "openai": (OPENAI_KEY,),
    "text-completion-openai": (OPENAI_KEY,),
    "azure": ("AZURE_API_KEY", "AZURE_AD_TOKEN"),
    "azure_ai": ("AZURE_AI_API_KEY",),
    "anthropic": ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"),
    "gemini": ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    "mistral": ("MISTRAL_API_KEY",),
    "codestral": ("CODESTRAL_API_KEY",),
    "cohere": ("COHERE_API_KEY", "CO_API_KEY"),
    "cohere_chat": ("COHERE_API_KEY", "CO_API_KEY"),
    "groq": ("GROQ_API_KEY",),
    "together_ai": ("TOGETHERAI_API_KEY", "TOGETHER_API_KEY", "TOGETHER_AI_API_KEY"),
    "fireworks_ai": ("FIREWORKS_AI_API_KEY", "FIREWORKS_API_KEY", "FIREWORKSAI_API_KEY"),
    "deepinfra": ("DEEPINFRA_API_KEY",),
    "deepseek": ("DEEPSEEK_API_KEY",),
    "openrouter": ("OPENROUTER_API_KEY", "OR_API_KEY"),
    "perplexity": ("PERPLEXITYAI_API_KEY", "PERPLEXITY_API_KEY"),
    "xai": ("XAI_API_KEY",),
    "replicate": ("REPLICATE_API_KEY", "REPLICATE_API_TOKEN"),
    "cerebras": ("CEREBRAS_API_KEY",),
    "sambanova": ("SAMBANOVA_API_KEY",),
    "nvidia_nim": ("NVIDIA_NIM_API_KEY",),
    "databricks": ("DATABRICKS_API_KEY", "DATABRICKS_TOKEN"),
    "huggingface": ("HUGGINGFACE_API_KEY", HF_TOKEN),
    "ai21": ("AI21_API_KEY",),
    "novita": ("NOVITA_API_KEY",),
    "nebius": ("NEBIUS_API_KEY",),
    "moonshot": ("MOONSHOT_API_KEY",),
    "dashscope": ("DASHSCOPE_API_KEY",),
    "meta_llama": ("LLAMA_API_KEY",),
    "featherless_ai": ("FEATHERLESS_AI_API_KEY",),
    "baseten": ("BASETEN_API_KEY",),
}


def variable(name: str) -> str | None:
    """The value of a variable, or None when it is not set.

    Args:
        name: One of the names above, or a recipe's `api_key_env`.
    """
    return os.environ.get(name)


def variables() -> dict[str, str]:
    """A copy of all variables."""
    return dict(os.environ)


def set_variables(values: Mapping[str, str]) -> None:
    """Sets variables for this process and its children."""
    os.environ.update(values)


def set_default(name: str, value: str) -> None:
    """Sets a variable unless it is set already."""
    os.environ.setdefault(name, value)


def unset(names: Iterable[str]) -> None:
    """Removes variables, where they are set."""
    for name in names:
        os.environ.pop(name, None)
