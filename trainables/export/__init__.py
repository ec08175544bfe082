"""Finetuned networks for other programs: ONNX with quantised layers, AIMET encodings, a table of layers."""
