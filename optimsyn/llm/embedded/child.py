"""The child process of `EmbeddedServer`: serves one GGUF file until its standard input ends.

Run as `python -m optimsyn.llm.embedded.child`. The first line of standard input is a JSON object with `model`,
`adapter` (a GGUF file, or null), `alias`, `key`, `slots` and `parent`; the first line of standard output is
`{"url": ...}`, printed once the server listens.
The key never appears among the arguments, which any user of the machine can list.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

# Only the messages' contents: the base model has no chat template, and does not know the markers of llama.cpp's default
# (ChatML).
PLAIN_TEMPLATE = "{%- for message in messages -%}{{ message['content'] }}{%- endfor -%}"
# Tokens of prompt and reply that a slot holds; the longest pair prompt is about 1,600 tokens.
TOKENS_PER_SLOT = 2304
# Memory for the caches of finished prompts; llama.cpp's default of 8 GB is more than many machines have.
_PROMPT_CACHE_MIB = 512
_PARENT_CHECK_S = 1.0


def parameters(config: dict[str, Any]) -> Any:
    """llama.cpp's parameters for a server of `config["slots"]` slots, for many short prompts with a common prefix.

    `swa_full` keeps the full cache of Gemma's sliding-window layers: without it a slot cannot reuse the common prefix,
    and every prompt is processed from its first token.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = config["model"]
    if config["adapter"] is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(config["adapter"], 1.0)]
    params.model_alias = {config["alias"]}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [config["key"]]
    params.n_parallel = config["slots"]
    params.n_ctx = TOKENS_PER_SLOT * config["slots"]
    params.swa_full = True
    params.cache_prompt = True
    params.cache_ram_mib = _PROMPT_CACHE_MIB
    threads = _cores()
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.n_gpu_layers = 0
    params.use_jinja = True
    params.chat_template = PLAIN_TEMPLATE
    params.enable_reasoning = 0
    params.ui = False
    params.endpoint_slots = False  # shows prompts
    params.verbosity = 1
    params.offline = True
    return params


def _cores() -> int:
    """Cores that this process may use, which in a container can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def _end_with_parent(parent: int) -> None:
    """Ends the process when its parent has ended, even if the pipe is still open."""
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_S)
    os._exit(0)


def main() -> None:
    """Serves until the standard input ends or the parent process is gone."""
    config = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, args=(config["parent"],), daemon=True).start()
    # llama.cpp may print; only the address goes to the real standard output.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    import xllamacpp

    server = xllamacpp.Server(parameters(config))
    out.write(json.dumps({"url": f"{server.listening_address}/v1"}) + "\n")
    out.flush()
    while sys.stdin.readline():
        pass
    # Exits directly, because deleting the server object while a request is in flight deadlocks.
    os._exit(0)


if __name__ == "__main__":
    main()
