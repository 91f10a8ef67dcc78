"""Expand folders of graphs whose weights are packed, without onnx, byte for byte."""
