"""What depends on the language of a text: its words, its name, its word lists, and whether it is a whole sentence."""
