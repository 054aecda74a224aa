"""Prompts for the embedded model's server whose data contains the string of a control token.

llama.cpp parses control tokens in a chat's text: `<end_of_turn>` in a passage would end a turn. So a prompt with such a
string is sent as token ids, which the server computes with control tokens off; other prompts are sent as text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

# Control tokens of the embedded Gemma; its HTML tags are text.
_CONTROLS = re.compile(
    r"<(?:pad|eos|bos|unk|mask|2mass|\[@BOS@\]|unused\d+|(?:start|end)_of_(?:turn|image)|image_soft_token)>"
    r"|\[@BOS@\]|\[multimodal\]"
)


async def post(client: httpx.AsyncClient, base: str, key: str, body: Mapping[str, Any]) -> httpx.Response:
    """Sends a chat request to the embedded model's server, its prompt as text without control tokens.

    Args:
        client: The HTTP client.
        base: Address of the server, ending in `/v1`.
        key: Its key.
        body: Body of a chat completion.

    Returns:
        The reply, or the server's refusal to tokenize the prompt; `as_chat` reads both kinds of replies.

    Raises:
        httpx.TransportError: The server cannot be reached.
    """
    headers = {"Authorization": f"Bearer {key}"}
    text = "".join(message["content"] for message in body["messages"])
    if _CONTROLS.search(text) is None:
        return await client.post(f"{base}/chat/completions", json=dict(body), headers=headers)
    request = {"content": text, "add_special": True, "parse_special": False}
    tokens = await client.post(f"{base.removesuffix('/v1')}/tokenize", json=request, headers=headers)
    if tokens.status_code >= 400:
        return tokens
    plain = {name: value for name, value in body.items() if name not in ("messages", "response_format")}
    plain["prompt"] = tokens.json()["tokens"]
    if body.get("response_format"):
        # The endpoint for plain prompts takes a schema only under this name.
        plain["json_schema"] = body["response_format"]["json_schema"]["schema"]
    return await client.post(f"{base}/completions", json=plain, headers=headers)


def as_chat(reply: Any) -> Any:
    """A reply's JSON with a completion's text moved to where a chat has its message."""
    for choice in reply.get("choices") or () if isinstance(reply, dict) else ():
        if isinstance(choice, dict) and "text" in choice:
            choice["message"] = {"role": "assistant", "content": choice.pop("text")}
    return reply
