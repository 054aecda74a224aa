"""Parses replies of language models into values, or raises a `ReplyError` that classifies the reply.

Every reply of every role takes the same steps:

1. A reply that is too long for its cap on tokens is truncated (`values`).
2. Characters that cannot be stored or seen are removed (`plain_text`).
3. Thinking is removed (`thinking`).
4. JSON is parsed strictly, then repaired within limits on size, depth and time (`json_objects`).
5. A reply without a value is classified: invalid form, cut, refusal, tool call or empty (`unusable`).
6. A cut reply is requested again with a larger cap, and every outcome is recorded (`asking`).

If a reply holds several values (a list, a wrapper, several objects, JSON lines), the first complete one counts.
"""
