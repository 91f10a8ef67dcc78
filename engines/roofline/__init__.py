"""Predict from bytes and operations what a model's products cost on a target, and in which format.

A roofline is a lower bound: a product takes as long as its bytes or its operations, whichever is
longer. What runs between products, and the start of a kernel, are not in it.
"""
