"""What an analyst may spend and do where nobody says otherwise; imports nothing, since `optimsyn --help` shows it."""

BUDGET = 1.0
"""US dollars."""

STEPS = 25
"""Steps of one sitting."""

BUYS = "enough for all steps of a cheap chat model such as openai/gpt-6-luna, with previews and runs at size tiny"
"""What the default budget is enough for."""
