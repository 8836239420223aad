"""What the answers to exams bear: scores, tests and groups, and how they are told, tabled and drawn."""
