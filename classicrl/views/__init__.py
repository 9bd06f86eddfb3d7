"""Pictures that a person looks at: solved puzzles as pages, animations and terminal text."""
