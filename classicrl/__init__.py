"""classicrl: classic deep-RL and search algorithms, built from parts that can be used alone."""

__version__ = "0.1.0"
