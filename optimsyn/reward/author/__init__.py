"""The author: an agent that writes the rubric for a passage with tools, and the record of what it did."""
