"""What each stage found, typed: one model a stage, with the table that people see of it."""
