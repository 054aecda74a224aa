"""What a terminal shows: a line that moves, tables, labels and their colours."""
