"""What a person looks at: pages, curves, and solved cubes as animations and terminal text."""
