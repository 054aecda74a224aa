"""What a person sees: tables, pictures, the summary and progress."""
