"""Language models that are asked: a call, a reply, and who answers."""
