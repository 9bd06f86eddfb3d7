"""What is made of finished runs: curves, published results, and whether they still hold."""
