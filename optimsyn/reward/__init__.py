"""The reward, the ledger of judgements, and a look at whether the reward can be trusted."""
