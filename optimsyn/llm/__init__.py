"""Language models: calls, replies, the reply cache and the budget."""
