"""Environments, several at a time, behind one interface: ``send``, then ``recv``."""
