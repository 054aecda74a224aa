"""The one reader of replies: from what a model sent to a value, or to a `ReplyError` that says what came instead.

Every reply of every role goes the same way:

1. A reply that is longer than its cap on tokens explains is cut down before anything looks into it (`reading`).
2. Its text is made storable: what no file can hold or no eye can see is dropped (`text`).
3. Thinking is taken off (`thinking`).
4. JSON is read strictly, then repaired within limits on size, depth and time (`objects`).
5. Where nothing could be read, what came instead is classified: an invalid form, a cut reply, a refusal, a tool call,
   nothing (`outcomes`).
6. A cut reply is asked for again with more room, and every outcome is put on record (`hearing`).

Where a reply holds several values (a list, a wrapper, one object after the other, JSON lines), the first complete one
counts.
"""
