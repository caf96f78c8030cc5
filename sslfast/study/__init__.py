"""Studies: grids of trainings that answer one question, each resumable, with its table and its pictures."""
